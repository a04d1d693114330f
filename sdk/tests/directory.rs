//! The directory spool against a model, with crashes that tear what was being written; damaged files; and
//! several processes' worth of spools on one directory.
#![cfg(feature = "spool")]

use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use tallymark::outbox::{Answer, Next};
use tallymark::{BatchId, DirectorySpool, Durability, Event, MemorySpool, Outbox, Spool};

const NOW: u64 = 1_763_673_600_000;

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tallymark-spool-{:016x}", rand::random::<u64>()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        files(&self.0, extension)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn open(folder: &Folder) -> DirectorySpool {
    DirectorySpool::open(&folder.0, Durability::Process).unwrap()
}

fn id(number: u8) -> BatchId {
    BatchId::new(NOW + u64::from(number), &mut || u64::from(number))
}

fn opening(batch: BatchId) -> String {
    format!("{{\"batch_id\":\"{batch}\",\"sdk\":\"t\",\"events\":[\n{{\"n\":0}}")
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Seal(u8),
    Remove(u8),
    /// The process dies; so many bytes of a write that had not returned are in the file.
    Crash(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..5u8).prop_map(Step::Append),
        2 => (0..5u8).prop_map(Step::Seal),
        1 => (0..5u8).prop_map(Step::Remove),
        1 => any::<u8>().prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_appended_is_there_after_any_crash(
        steps in proptest::collection::vec(step(), 1..60),
        power in any::<bool>(),
    ) {
        let durability = if power { Durability::Power } else { Durability::Process };
        let folder = Folder::new();
        let mut spool = DirectorySpool::open(&folder.0, durability).unwrap();
        // What is in each segment, and whether it is sealed; as the outbox uses it, one at a time is open.
        let mut model: BTreeMap<BatchId, (String, bool)> = BTreeMap::new();
        let mut current: Option<BatchId> = None;
        let mut next = 0u8;
        for step in steps {
            match step {
                Step::Append(n) => {
                    let batch = *current.get_or_insert_with(|| {
                        next += 1;
                        id(next)
                    });
                    let text = match model.get(&batch) {
                        None => opening(batch),
                        Some(_) => format!(",\n{{\"n\":{n}}}"),
                    };
                    spool.append(batch, &text).unwrap();
                    model.entry(batch).or_default().0.push_str(&text);
                }
                Step::Seal(n) => {
                    if let Some(batch) = current.take() {
                        let text = format!("\n],\"lost\":{{\"queue_full\":{n}}}}}");
                        spool.seal(batch, &text).unwrap();
                        let segment = model.get_mut(&batch).unwrap();
                        segment.0.push_str(&text);
                        segment.1 = true;
                    }
                }
                Step::Remove(n) => {
                    let sealed: Vec<_> = model.iter().filter(|(_, (_, sealed))| *sealed).map(|(id, _)| *id).collect();
                    if let Some(batch) = sealed.get(usize::from(n) % sealed.len().max(1)) {
                        spool.remove(*batch).unwrap();
                        model.remove(batch);
                    }
                }
                Step::Crash(torn) => {
                    drop(spool);
                    if let Some(path) = folder.files("open").first() {
                        // A frame of which only the start was written.
                        let mut frame = vec![40, 0, 0, 0, 1, 2, 3, 4];
                        frame.resize(48, b'x');
                        let mut file = OpenOptions::new().append(true).open(path).unwrap();
                        file.write_all(&frame[..usize::from(torn) % 48]).unwrap();
                    }
                    spool = DirectorySpool::open(&folder.0, durability).unwrap();
                    let recovered = spool.recover().unwrap();
                    prop_assert_eq!(recovered.corrupt, 0);
                    for (text, sealed) in model.values_mut() {
                        if !*sealed {
                            text.push_str("\n]}");
                            *sealed = true;
                        }
                    }
                    current = None;
                    let found: Vec<_> = recovered.segments.iter().map(|segment| segment.batch_id).collect();
                    prop_assert_eq!(found, model.keys().copied().collect::<Vec<_>>());
                    for segment in recovered.segments {
                        let text = &model[&segment.batch_id].0;
                        prop_assert_eq!(segment.events as usize, text.matches("{\"n\":").count());
                        prop_assert_eq!(segment.bytes, text.len());
                    }
                }
            }
            for (batch, (text, sealed)) in &model {
                if *sealed {
                    prop_assert_eq!(&spool.read(*batch).unwrap(), text);
                }
            }
        }
    }
}

/// One sealed segment of three events, and the bytes of its file before it was sealed.
fn segment(folder: &Folder) -> (PathBuf, Vec<u8>) {
    let mut spool = open(folder);
    spool.append(id(1), &opening(id(1))).unwrap();
    spool.append(id(1), ",\n{\"n\":1}").unwrap();
    spool.append(id(1), ",\n{\"n\":2}").unwrap();
    let bytes = fs::read(&folder.files("open")[0]).unwrap();
    spool.seal(id(1), "\n]}").unwrap();
    drop(spool);
    (folder.files("batch").remove(0), bytes)
}

#[test]
fn a_file_torn_anywhere_keeps_every_event_before() {
    let folder = Folder::new();
    let (path, bytes) = segment(&folder);
    fs::remove_file(&path).unwrap();
    let mut events = Vec::new();
    for length in 0..=bytes.len() {
        fs::write(path.with_extension("open"), &bytes[..length]).unwrap();
        // An open segment in a lane that nobody holds, as after a crash.
        let mut spool = open(&folder);
        let recovered = spool.recover().unwrap();
        assert_eq!(recovered.corrupt, 0);
        let found = recovered.segments.first().map_or(0, |segment| segment.events);
        events.push(found);
        if found > 0 {
            let body = spool.read(id(1)).unwrap();
            assert!(body.ends_with("\n]}") && body.matches("{\"n\":").count() == found as usize, "{body}");
            spool.remove(id(1)).unwrap();
        }
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path.with_file_name("lock"), "").unwrap();
    }
    assert!(events.is_sorted());
    assert_eq!((events[0], events[bytes.len() - 1], events[bytes.len()]), (0, 2, 3));
}

#[test]
fn a_damaged_batch_is_moved_aside_and_counted_and_its_neighbours_go_on() {
    for at in [0, 9, 20, 100, 139] {
        let folder = Folder::new();
        let (path, _) = segment(&folder);
        let mut spool = open(&folder);
        spool.append(id(2), &opening(id(2))).unwrap();
        spool.seal(id(2), "\n]}").unwrap();
        drop(spool);
        let path = folder.files("batch").into_iter().find(|found| found.file_name() == path.file_name()).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(&path, bytes).unwrap();

        // Again and again, and it is not in the way any more.
        for life in 0..3 {
            let mut spool = open(&folder);
            let recovered = spool.recover().unwrap();
            assert_eq!(recovered.segments.len(), 1, "byte {at}");
            assert_eq!(recovered.segments[0].batch_id, id(2));
            assert!(life == 0 || recovered.corrupt == 0);
        }
        assert_eq!(fs::read_dir(folder.0.join("corrupt")).unwrap().count(), 1);
    }
}

#[test]
fn the_outbox_counts_what_was_damaged_as_lost() {
    let folder = Folder::new();
    segment(&folder);
    let path = folder.files("batch").remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let outbox = Outbox::new(tallymark::outbox::Config::default(), open(&folder), || 7).unwrap();
    let stats = outbox.stats();
    assert_eq!((stats.adopted, stats.dropped.of(tallymark::Reason::Storage), stats.queued), (3, 3, 0));
}

#[test]
fn another_version_is_refused_and_left_alone() {
    let folder = Folder::new();
    let (path, _) = segment(&folder);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] += 1;
    fs::write(&path, &bytes).unwrap();
    let error = open(&folder).recover().unwrap_err();
    assert!(error.to_string().contains("is of version 2, and this program knows version 1"), "{error}");
    let left = folder.files("batch");
    assert_eq!(fs::read(&left[0]).unwrap(), bytes);
}

#[test]
fn a_live_process_keeps_its_lane_and_a_dead_ones_is_adopted() {
    let folder = Folder::new();
    let mut first = open(&folder);
    first.append(id(1), &opening(id(1))).unwrap();
    let mut second = open(&folder);
    assert_eq!(second.recover().unwrap().segments.len(), 0);
    second.append(id(2), &opening(id(2))).unwrap();
    drop(first);
    let mut third = open(&folder);
    assert_eq!(third.recover().unwrap().segments.iter().map(|s| s.batch_id).collect::<Vec<_>>(), [id(1)]);
    drop((second, third));
    assert_eq!(open(&folder).recover().unwrap().segments.len(), 2);
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "adopted lanes are removed");
}

#[test]
fn of_many_that_start_at_once_each_segment_is_adopted_by_one() {
    for _ in 0..20 {
        let folder = Folder::new();
        for number in 0..6 {
            let mut spool = open(&folder);
            spool.append(id(number), &opening(id(number))).unwrap();
        }
        let found: Vec<_> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut spool = open(&folder);
                        let segments = spool.recover().unwrap().segments;
                        (spool, segments)
                    })
                })
                .collect();
            // All live until all have started.
            starting.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut batches: Vec<_> = found.iter().flat_map(|(_, segments)| segments).map(|s| s.batch_id).collect();
        batches.sort();
        let mut all: Vec<_> = (0..6).map(id).collect();
        all.sort();
        assert_eq!(batches, all);
    }
}

#[test]
fn what_the_disk_does_not_take_is_held_in_memory() {
    let folder = Folder::new();
    let mut outbox = Outbox::new(tallymark::outbox::Config::default(), open(&folder), rand::random::<u64>).unwrap();
    outbox.push(NOW, &Event::custom("on disk")).unwrap();
    outbox.flush();
    for entry in fs::read_dir(&folder.0).unwrap() {
        // Root may write anywhere, but not where there is nothing.
        fs::rename(entry.unwrap().path(), folder.0.join("gone")).unwrap();
    }
    outbox.push(NOW, &Event::custom("in memory")).unwrap();
    outbox.flush();
    let mut sent = Vec::new();
    while let tallymark::outbox::Next::Send(attempt) = outbox.poll(NOW) {
        sent.push(attempt.body);
    }
    assert_eq!(sent.len(), 1, "the batch on disk cannot be read any more");
    assert!(sent[0].contains("in memory"));
    assert_eq!(outbox.stats().dropped.of(tallymark::Reason::Storage), 1);
}

#[test]
fn a_batch_that_is_safe_on_disk_is_not_divided_into_memory() {
    let folder = Folder::new();
    let mut spool = open(&folder);
    for entry in fs::read_dir(&folder.0).unwrap() {
        fs::rename(entry.unwrap().path(), folder.0.join("gone")).unwrap();
    }
    spool.append(id(1), &opening(id(1))).unwrap();
    spool.append(id(2), &(opening(id(2)) + "\n]}")).unwrap_err();
}

#[test]
fn a_part_is_never_adopted_beside_its_whole() {
    let folder = Folder::new();
    let mut outbox = Outbox::new(tallymark::outbox::Config::default(), open(&folder), rand::random::<u64>).unwrap();
    for _ in 0..2 {
        outbox.push(NOW, &Event::custom("n")).unwrap();
    }
    outbox.flush();
    let Next::Send(attempt) = outbox.poll(NOW) else { panic!("nothing to send") };
    let path = folder.files("batch").remove(0);
    let whole = fs::read(&path).unwrap();
    outbox.answer(NOW, attempt.batch_id, Answer::Status { status: 413, retry_after: None });
    assert_eq!(folder.files("batch").len(), 2);
    // As if it had died just before it removed the whole.
    drop(outbox);
    fs::write(&path, whole).unwrap();
    // Already while it is adopted, for another that comes between may find some of the files only.
    let spool = open(&folder);
    let left = folder.files("batch");
    assert_eq!((left.len(), left[0].file_name()), (1, path.file_name()));
    drop(spool);
    let outbox = Outbox::new(tallymark::outbox::Config::default(), open(&folder), rand::random::<u64>).unwrap();
    assert_eq!(outbox.stats().adopted, 2);
}

#[test]
fn memory_and_directory_agree() {
    let folder = Folder::new();
    let mut directory = open(&folder);
    let mut memory = MemorySpool::new();
    directory.append(id(1), &opening(id(1))).unwrap();
    memory.append(id(1), &opening(id(1))).unwrap();
    drop(directory);
    let mut directory = open(&folder);
    assert_eq!(directory.recover().unwrap(), memory.recover().unwrap());
    assert_eq!(directory.read(id(1)).unwrap(), memory.read(id(1)).unwrap());
}

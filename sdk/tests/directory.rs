//! The directory spool: against a model, with crashes in the middle of a write; with damaged files; and with several
//! spools in one directory, as several processes have.
#![cfg(feature = "spool")]

mod spool_folder;

use proptest::prelude::*;
use spool_folder::{Folder, NOW, adopt, id, opening};
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use tallymark::outbox::{Answer, Clock, Config, Next};
use tallymark::{BatchId, DirectorySpool, Durability, Event, MemorySpool, Outbox, Reason, Segment, Spool};

const CLOCK: Clock = Clock::start(NOW, 0);

fn open(folder: &Folder) -> DirectorySpool {
    DirectorySpool::open(&folder.0, Durability::Process).unwrap()
}

type AnOutbox = Outbox<DirectorySpool, fn() -> u64>;

fn outbox(folder: &Folder, config: Config) -> AnOutbox {
    Outbox::new(&CLOCK, config, open(folder), rand::random::<u64> as fn() -> u64).unwrap()
}

/// An outbox that has taken over as much as there is room for.
fn adopting(folder: &Folder, config: Config) -> AnOutbox {
    let mut outbox = outbox(folder, config);
    while outbox.adopt(&CLOCK).unwrap() > 0 {}
    outbox
}

#[derive(Clone, Debug)]
enum Step {
    Append(u8),
    Seal(u8),
    Remove(u8),
    /// The process ends; the file has this many bytes of a write that had not returned.
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
        // The text of each segment, and whether it is sealed. Like the outbox, it has one open segment at a time.
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
                        // The beginning of a frame.
                        let mut frame = vec![40, 0, 0, 0, 1, 2, 3, 4];
                        frame.resize(48, b'x');
                        let mut file = OpenOptions::new().append(true).open(path).unwrap();
                        file.write_all(&frame[..usize::from(torn) % 48]).unwrap();
                    }
                    spool = DirectorySpool::open(&folder.0, durability).unwrap();
                    let recovered = adopt(&mut spool);
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
        // An open segment in an abandoned lane, as after a crash.
        let mut spool = open(&folder);
        let recovered = adopt(&mut spool);
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

        // It does not get in the way again.
        for life in 0..3 {
            let mut spool = open(&folder);
            let recovered = adopt(&mut spool);
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
    let outbox = adopting(&folder, Config::default());
    let stats = outbox.stats();
    assert_eq!((stats.adopted, stats.dropped.of(Reason::Storage), stats.queued), (3, 3, 0));
}

#[test]
fn another_version_is_refused_and_left_alone() {
    let folder = Folder::new();
    let (path, _) = segment(&folder);
    let mut bytes = fs::read(&path).unwrap();
    bytes[7] += 1;
    fs::write(&path, &bytes).unwrap();
    let error = open(&folder).adopt(usize::MAX).unwrap_err();
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
    assert_eq!(adopt(&mut second).segments.len(), 0);
    second.append(id(2), &opening(id(2))).unwrap();
    drop(first);
    let mut third = open(&folder);
    assert_eq!(adopt(&mut third).segments.iter().map(|s| s.batch_id).collect::<Vec<_>>(), [id(1)]);
    drop((second, third));
    assert_eq!(adopt(&mut open(&folder)).segments.len(), 2);
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
                        let segments = adopt(&mut spool).segments;
                        (spool, segments)
                    })
                })
                .collect();
            // All spools live until all have started.
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
    let mut outbox = outbox(&folder, Config::default());
    outbox.push(NOW, &Event::custom("on disk")).unwrap();
    outbox.flush();
    for entry in fs::read_dir(&folder.0).unwrap() {
        // Root may write anywhere, but not to a folder that does not exist.
        fs::rename(entry.unwrap().path(), folder.0.join("gone")).unwrap();
    }
    outbox.push(NOW, &Event::custom("in memory")).unwrap();
    outbox.flush();
    let mut sent = Vec::new();
    while let Next::Send(attempt) = outbox.poll(NOW) {
        sent.push(attempt.body);
    }
    assert_eq!(sent.len(), 1, "the batch on disk can no longer be read");
    assert!(sent[0].contains("in memory"));
    assert_eq!(outbox.stats().dropped.of(Reason::Storage), 1);
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
    let mut outbox = outbox(&folder, Config::default());
    for _ in 0..2 {
        outbox.push(NOW, &Event::custom("n")).unwrap();
    }
    outbox.flush();
    let Next::Send(attempt) = outbox.poll(NOW) else { panic!("nothing to send") };
    let path = folder.files("batch").remove(0);
    let whole = fs::read(&path).unwrap();
    outbox.answer(NOW, attempt.batch_id, Answer::Status { status: 413, retry_after: None });
    assert_eq!(folder.files("batch").len(), 2);
    // As if the process had ended just before it removed the whole.
    drop(outbox);
    fs::write(&path, whole).unwrap();
    // The part is removed before the whole is taken over, because another process might take over the rest.
    let outbox = adopting(&folder, Config::default());
    let left = folder.files("batch");
    assert_eq!((left.len(), left[0].file_name()), (1, path.file_name()));
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
    assert_eq!(adopt(&mut directory), memory.recover().unwrap());
    assert_eq!(directory.read(id(1)).unwrap(), memory.read(id(1)).unwrap());
}

#[test]
fn what_was_within_its_own_limit_is_not_pushed_out_when_it_is_taken_over() {
    let folder = Folder::new();
    let mut config = Config::default();
    config.queue_bytes = 64 * 1024;
    config.batch_bytes = 2 * 1024;
    let mut others: Vec<_> = (0..4).map(|_| outbox(&folder, config.clone())).collect();
    for other in &mut others {
        for _ in 0..300 {
            other.push(NOW, &Event::custom("n")).unwrap();
        }
        assert_eq!(other.stats().dropped.total(), 0);
    }
    drop(others);
    let mut next = adopting(&folder, config);
    let first = next.stats().adopted;
    assert!(first > 100 && first < 1_200, "{first}");
    for _ in 0..50 {
        next.push(NOW, &Event::custom("n")).unwrap();
    }
    next.flush();
    // The rest stays where it is until there is room.
    for _ in 0..1_000 {
        match next.poll(NOW) {
            Next::Send(attempt) => {
                let answer = Answer::Receipt { accepted: attempt.events, rejected: 0, retry: &[] };
                next.answer(NOW, attempt.batch_id, answer);
            }
            _ if next.adopt(&CLOCK).unwrap() == 0 => break,
            _ => {}
        }
    }
    let stats = next.stats();
    assert_eq!((stats.adopted, stats.delivered, stats.dropped.total(), stats.queued), (1_200, 1_250, 0, 0));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 1, "emptied lanes are removed");
}

#[test]
fn rot_in_an_open_segment_is_told_wherever_it_is() {
    let place = Folder::new();
    let (path, bytes) = segment(&place);
    for at in (0..bytes.len()).filter(|at| *at != 7) {
        for bit in [1, 0x80] {
            let folder = Folder::new();
            let lane = folder.0.join("lane-1");
            fs::create_dir(&lane).unwrap();
            fs::write(lane.join("lock"), "").unwrap();
            let mut rotten = bytes.clone();
            rotten[at] ^= bit;
            fs::write(lane.join(path.file_name().unwrap()).with_extension("open"), &rotten).unwrap();
            let mut spool = open(&folder);
            let recovered = adopt(&mut spool);
            let kept: u32 = recovered.segments.iter().map(|segment| segment.events).sum();
            assert_eq!(fs::read_dir(folder.0.join("corrupt")).unwrap().count(), 1, "byte {at}");
            // An event whose first bytes are damaged cannot be counted.
            if !b"\n{".contains(&bytes[at]) {
                assert_eq!(kept + recovered.corrupt, 3, "byte {at}");
            }
            for Segment { batch_id, .. } in recovered.segments {
                assert!(spool.read(batch_id).unwrap().ends_with("\n]}"));
            }
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn what_the_disk_cannot_read_is_moved_aside_and_its_neighbours_go_on() {
    let folder = Folder::new();
    let (path, _) = segment(&folder);
    // Reading this file from its beginning is an error.
    std::os::unix::fs::symlink("/proc/self/mem", path.with_file_name(format!("{}.batch", id(2)))).unwrap();
    let recovered = adopt(&mut open(&folder));
    assert_eq!((recovered.segments.len(), recovered.corrupt), (1, 1));
    assert_eq!(adopt(&mut open(&folder)).corrupt, 0);
}

#[test]
fn a_lane_without_a_lock_is_told_and_left_alone() {
    let folder = Folder::new();
    let (path, bytes) = segment(&folder);
    fs::remove_file(path.with_file_name("lock")).unwrap();
    let mut spool = open(&folder);
    let error = spool.adopt(usize::MAX).unwrap_err();
    assert!(error.to_string().contains("whether"), "{error}");
    assert!(fs::read(&path).unwrap().starts_with(&bytes));
    // As the error advises.
    fs::write(path.with_file_name("lock"), "").unwrap();
    assert_eq!(adopt(&mut spool).segments.len(), 1);
}

#[test]
fn a_lane_that_cannot_be_taken_over_does_not_hold_up_the_others() {
    let folder = Folder::new();
    let (path, bytes) = segment(&folder);
    let other_version = [&bytes[..7], b"\x02", &bytes[8..]].concat();
    fs::write(path.with_file_name(format!("{}.batch", id(2))), other_version).unwrap();
    let mut spool = open(&folder);
    spool.append(id(3), &opening(id(3))).unwrap();
    drop(spool);
    let mut spool = open(&folder);
    let mut found: Vec<_> = Vec::new();
    let mut errors = 0;
    for _ in 0..4 {
        match spool.adopt(usize::MAX) {
            Ok(recovered) => found.extend(recovered.segments.iter().map(|segment| segment.batch_id)),
            Err(_) => errors += 1,
        }
    }
    assert!(errors > 0);
    found.sort();
    assert_eq!(found, [id(1), id(3)]);
}

#[test]
#[cfg(unix)]
fn what_is_open_when_the_directory_goes_away_is_still_sent() {
    let folder = Folder::new();
    let mut outbox = outbox(&folder, Config::default());
    outbox.push(NOW, &Event::custom("before")).unwrap();
    fs::remove_dir_all(&folder.0).unwrap();
    outbox.push(NOW, &Event::custom("after")).unwrap();
    outbox.flush();
    let Next::Send(attempt) = outbox.poll(NOW) else { panic!("nothing to send") };
    assert_eq!(attempt.events, 2);
    assert!(attempt.body.contains("before") && attempt.body.contains("after") && attempt.body.ends_with("\n]}"));
    let receipt = Answer::Receipt { accepted: 2, rejected: 0, retry: &[] };
    assert_eq!(outbox.answer(NOW, attempt.batch_id, receipt).delivered, 2);
}

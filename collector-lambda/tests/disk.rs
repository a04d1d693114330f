//! What becomes of the collector when its disk does not do as it should: full, read-only, damaged, or empty where
//! something was.
#![cfg(feature = "server")]

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Collector, Folder, Place, batch};

const SENDERS: usize = 8;
const EVENTS: usize = 20;

/// A small disk of its own below a folder's `data`, made without root where the system lets users mount in a
/// namespace of their own.
struct SmallDisk {
    folder: PathBuf,
    // The disk is there for as long as this process is, and that for as long as somebody could write to it.
    holder: Child,
    _end: ChildStdin,
}

impl SmallDisk {
    /// `None` where that is not possible, which is said on the terminal, whatever the test harness makes of it.
    fn new(folder: &Folder, megabytes: u32, test: &str) -> Option<Self> {
        let data = folder.0.join("data");
        fs::create_dir_all(&data).unwrap();
        let mount = format!("mount -t tmpfs -o size={megabytes}m tmpfs \"$0\" && echo mounted && exec cat");
        let holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount])
            .arg(data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut line = String::new();
        if let Ok(mut holder) = holder {
            BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let end = holder.stdin.take().unwrap();
            if line == "mounted\n" {
                return Some(Self { folder: folder.0.clone(), holder, _end: end });
            }
            drop(end);
            holder.wait().unwrap();
        }
        let said = format!("\n{test}: NOT RUN: nobody but root may mount a disk here\n\n");
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        None
    }

    fn place(&self) -> Place {
        let pid = self.holder.id();
        let through = format!("nsenter --target {pid} --user --preserve-credentials --mount --");
        let through = through.split(' ').map(Into::into).collect();
        Place { through, root: format!("/proc/{pid}/root").into(), ..Place::default() }
    }

    fn remount(&self, how: &str) {
        let Place { through, .. } = self.place();
        let mut mount = Command::new(&through[0]);
        mount.args(&through[1..]).args(["mount", "-o", &format!("remount,bind,{how}")]).arg(self.folder.join("data"));
        assert!(mount.status().unwrap().success());
    }

    fn filler(&self) -> PathBuf {
        self.place().root.join(self.folder.strip_prefix("/").unwrap()).join("data/filler")
    }

    fn fill(&self) {
        let mut filler = File::create(self.filler()).unwrap();
        while filler.write_all(&[7; 4096]).is_ok() {}
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The same for any user on any system: no file may grow beyond a size. Whether it could be said to the collector,
/// which may have ended.
fn limit_files(collector: &Collector, bytes: &str) -> bool {
    let pid = collector.process_id().to_string();
    let mut limit = Command::new("prlimit");
    limit.args(["--pid", &pid, &format!("--fsize={bytes}:")]).stderr(Stdio::null()).status().unwrap().success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_loses_nothing_and_counts_nothing_twice() {
    let folder = Folder::new();
    let Some(disk) = SmallDisk::new(&folder, 256, "a_full_disk_loses_nothing_and_counts_nothing_twice") else { return };
    let collector = Collector::start_in(folder, disk.place(), &["--lake-roll-interval", "1s"]);
    let free = |collector: &Collector| {
        assert!(collector.log().contains("cannot commit"));
        disk.free();
    };
    survives(collector, |_| disk.fill(), free).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_may_not_grow_lose_nothing_and_count_nothing_twice() {
    // Without the signal, which would end the process as if it had been killed.
    let through = ["sh", "-c", "trap '' XFSZ; exec \"$@\"", "sh"].map(Into::into).to_vec();
    let place = Place { through, ..Place::default() };
    let collector = Collector::start_in(Folder::new(), place, &["--lake-roll-interval", "1s"]);
    survives(
        collector,
        |collector| assert!(limit_files(collector, "8192")),
        |collector| _ = limit_files(collector, "unlimited"),
    )
    .await;
}

/// Fills the disk while many send, and makes room again: nothing is answered but 200 and 503, and in the end all
/// that was sent is counted and stored once.
async fn survives(mut collector: Collector, fill: impl Fn(&Collector), free: impl Fn(&Collector)) {
    #[derive(Default)]
    struct Seen {
        accepted: Vec<Value>,
        refused: Vec<Value>,
        /// The longest that a client was asked to stay away.
        wait: u64,
    }
    let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
    let senders: Vec<_> = (0..SENDERS)
        .map(|_| {
            let (url, key) = (format!("{}/v1/batch", collector.url), collector.secret_key.clone());
            let (seen, stop) = (Arc::clone(&seen), Arc::clone(&stop));
            tokio::spawn(async move {
                let http = reqwest::Client::new();
                while !stop.load(Ordering::Relaxed) {
                    let batch = batch(EVENTS);
                    let answer = http.post(&url).basic_auth("shop", Some(&key)).json(&batch).send().await.unwrap();
                    let status = answer.status();
                    let wait = answer.headers().get("retry-after").map(|wait| wait.to_str().unwrap().to_owned());
                    let answer: Value = answer.json().await.unwrap();
                    if status == 200 {
                        assert_eq!((&answer["accepted"], &answer["retry"]), (&json!(EVENTS), &json!([])));
                        seen.lock().unwrap().accepted.push(batch);
                        continue;
                    }
                    assert_eq!((status.as_u16(), &answer["code"]), (503, &json!("unavailable")), "{answer}");
                    {
                        let mut seen = seen.lock().unwrap();
                        seen.wait = seen.wait.max(wait.unwrap().parse().unwrap());
                        seen.refused.push(batch);
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            })
        })
        .collect();
    let wait = async |what: &str, is: &dyn Fn(&Seen) -> bool| {
        for _ in 0..6_000 {
            if is(&seen.lock().unwrap()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{what}: {} accepted, {} refused",
            seen.lock().unwrap().accepted.len(),
            seen.lock().unwrap().refused.len()
        );
    };
    wait("nothing is accepted", &|seen| seen.accepted.len() > 100).await;
    fill(&collector);
    wait("nothing is refused", &|seen| seen.refused.len() > 100).await;
    wait("clients are not kept away longer while it lasts", &|seen| seen.wait > 5).await;
    let ready = collector.http.get(format!("{}/ready", collector.url)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(collector.total("custom").await > 0, "what has been counted can be read");
    free(&collector);
    let before = seen.lock().unwrap().accepted.len();
    wait("it does not recover", &|seen| seen.accepted.len() > before + 100).await;
    stop.store(true, Ordering::Relaxed);
    for sender in senders {
        sender.await.unwrap();
    }
    assert_eq!(collector.http.get(format!("{}/health", collector.url)).send().await.unwrap().status(), 200);

    let Seen { mut accepted, refused, .. } = std::mem::take(&mut *seen.lock().unwrap());
    let counted = accepted.len();
    assert_eq!(collector.total("custom").await, (EVENTS * counted) as u64, "what was answered 503 is not counted");
    for batch in refused {
        let receipt: Value = collector.post("/v1/batch", &batch).send().await.unwrap().json().await.unwrap();
        assert_eq!((&receipt["accepted"], &receipt["duplicate"]), (&json!(EVENTS), &json!(false)));
        accepted.push(batch);
    }
    is_whole(&mut collector, &accepted).await;

    // It is asked to stop, and is started, on a full disk.
    let last: Vec<_> = (0..20).map(|_| batch(EVENTS)).collect();
    for batch in &last {
        assert_eq!(collector.post("/v1/batch", batch).send().await.unwrap().status(), 200);
    }
    accepted.extend(last);
    fill(&collector);
    collector.stop();
    free(&collector);
    println!(
        "{} batches, {} of them refused at first: none lost, none twice",
        accepted.len(),
        accepted.len() - counted
    );
    collector.restart();
    is_whole(&mut collector, &accepted).await;
}

/// Stops it, and starts it again if all is as it should be.
async fn is_whole(collector: &mut Collector, accepted: &[Value]) {
    let total = collector.total("custom").await;
    assert_eq!(total, (EVENTS * accepted.len()) as u64);
    collector.stop();
    let lake = collector.lake();
    for event in accepted.iter().flat_map(|batch| batch["events"].as_array().unwrap()) {
        assert_eq!(lake.get(event["event_id"].as_str().unwrap()), Some(&1));
    }
    assert_eq!(lake.len() as u64, total);
    for command in ["verify", "reconcile"] {
        let (content, said) = collector.run(&[command]);
        assert!(content, "{command}: {said}");
    }
    collector.restart();
    assert_eq!(collector.total("custom").await, total);
}

/// A sealed lake and a database of one file, and what is served from it.
async fn store() -> Collector {
    let mut collector = Collector::start(&[]);
    for _ in 0..300 {
        assert_eq!(collector.post("/v1/batch", &batch(2)).send().await.unwrap().status(), 200);
    }
    collector.stop();
    let log = fs::metadata(collector.data_dir().join("tallymark.db-wal"));
    assert_eq!(log.map_or(0, |log| log.len()), 0, "all is in one file");
    collector
}

/// Every file below a folder that holds something which would be missed.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(contents(&path));
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        if !bytes.is_empty() && !path.ends_with("tallymark.db-shm") {
            files.insert(path, bytes);
        }
    }
    files
}

/// `serve` on the data directory as it is now, which must refuse and leave every byte as it was. What it says.
fn refused(collector: &Collector, what: &str) -> String {
    let before = contents(&collector.data_dir());
    let (content, said) = collector.serve();
    assert!(!content, "{what}");
    assert!(contents(&collector.data_dir()) == before, "{what}: something was changed");
    let (content, verified) = collector.run(&["verify"]);
    assert!(!content, "{what}: {verified}");
    assert!(contents(&collector.data_dir()) == before, "{what}: looking at it has changed something");
    said
}

fn write_at(file: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    File::options().write(true).create(true).truncate(false).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

fn garbage(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| rand::random()).collect()
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_left_as_it_is() {
    let mut collector = store().await;
    let (database, log) = (collector.data_dir().join("tallymark.db"), collector.data_dir().join("tallymark.db-wal"));
    let good = fs::read(&database).unwrap();
    let size = good.len();
    assert!(size > 20 * 4096, "{size}");
    type Damage<'a> = (&'a str, &'a dyn Fn());
    let damages: [Damage<'_>; 6] = [
        ("garbage at the start", &|| write_at(&database, 0, &garbage(100))),
        ("garbage in the middle", &|| write_at(&database, size as u64 / 8192 * 4096, &garbage(8 * 4096))),
        ("the second half is gone", &|| cut(&database, size / 2)),
        ("less than a page is left", &|| cut(&database, 1000)),
        ("all is garbage", &|| fs::write(&database, garbage(size)).unwrap()),
        ("the log is garbage", &|| fs::write(&log, garbage(20_000)).unwrap()),
    ];
    for (what, damage) in damages {
        damage();
        let said = refused(&collector, what);
        assert!(said.contains("tallymark.db") && said.contains("damaged") && said.contains("backup"), "{what}: {said}");
        fs::write(&database, &good).unwrap();
        let _ = fs::remove_file(&log);
    }
    collector.restart();
    assert_eq!(collector.total("custom").await, 600);

    // A log that holds what has been answered: of a collector that was killed.
    assert_eq!(collector.post("/v1/batch", &batch(5)).send().await.unwrap().status(), 200);
    collector.kill();
    let good = fs::read(&log).unwrap();
    write_at(&log, 20, &[good[20] ^ 1]);
    let said = refused(&collector, "the log's head is damaged");
    assert!(said.contains("tallymark.db-wal: it is damaged") && said.contains("backup"), "{said}");
    fs::write(&log, good).unwrap();
    collector.restart();
    assert_eq!(collector.total("custom").await, 605);
}

fn cut(file: &Path, size: usize) {
    File::options().write(true).open(file).unwrap().set_len(size as u64).unwrap();
}

#[tokio::test]
async fn a_database_that_is_damaged_while_it_runs_takes_no_more() {
    let mut collector = store().await;
    collector.restart();
    let database = collector.data_dir().join("tallymark.db");
    let size = fs::metadata(&database).unwrap().len() as usize;
    write_at(&database, 4096, &garbage(size - 4096));
    let answer = collector.post("/v1/batch", &batch(5)).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    let ready = collector.http.get(format!("{}/ready", collector.url)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    collector.logged("cannot commit", 1).await;
    assert!(collector.log().contains("malformed"), "{}", collector.log());
    collector.kill();
    assert!(refused(&collector, "it was damaged while it ran").contains("damaged"));
}

#[tokio::test]
async fn a_database_that_is_gone_is_not_begun_anew_beside_its_lake() {
    let mut collector = store().await;
    let database = collector.data_dir().join("tallymark.db");
    let top = r#"{"event_type":"custom","top":[{"key":"n0","count":300},{"key":"n1","count":300}]}"#;
    for emptied in [false, true] {
        if emptied {
            cut(&database, 0);
        } else {
            fs::remove_file(&database).unwrap();
        }
        let said = refused(&collector, "there is no database");
        for words in ["tallymark.db", "missing or empty", "backup", "reconcile --repair"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let (content, said) = collector.run(&["reconcile"]);
        assert!(!content && said.contains("missing or empty"), "{said}");
        let (content, said) = collector.run(&["reconcile", "--repair"]);
        assert!(content && said.contains("is counted again") && said.contains("600 events stored"), "{said}");
        assert!(collector.run(&["verify"]).0);
        collector.restart();
        assert_eq!(collector.get("/v1/counts/top?event_type=custom").await.to_string(), top);
        collector.stop();
    }
    // A line that cannot be read would lose its event silently.
    fs::remove_file(&database).unwrap();
    let lake = contents(&collector.data_dir());
    let (file, lines) = lake.iter().find(|(file, _)| file.extension().is_some_and(|it| it == "ndjson")).unwrap();
    fs::write(file, [&lines[..], b"{\n"].concat()).unwrap();
    let (content, said) = collector.run(&["reconcile", "--repair"]);
    assert!(!content && said.contains("what cannot be read"), "{said}");
    assert!(!database.exists());
    refused(&collector, "there is still no database");
    fs::write(file, lines).unwrap();
    // A log without its database holds events that are nowhere else.
    let log = collector.data_dir().join("tallymark.db-wal");
    fs::write(&log, "events").unwrap();
    assert!(refused(&collector, "the log is left").contains("-wal file"));
    assert!(!collector.run(&["reconcile", "--repair"]).0);
    assert_eq!(fs::read(&log).unwrap(), b"events");
    fs::remove_file(log).unwrap();
    assert!(collector.run(&["reconcile", "--repair"]).0);
    collector.restart();
    assert_eq!(collector.get("/v1/counts/top?event_type=custom").await.to_string(), top);
}

#[tokio::test]
async fn a_data_directory_that_cannot_be_written_is_refused() {
    let folder = Folder::new();
    let Some(disk) = SmallDisk::new(&folder, 256, "a_data_directory_that_cannot_be_written_is_refused") else { return };
    let mut collector = Collector::start_in(folder, disk.place(), &[]);
    assert_eq!(collector.post("/v1/batch", &batch(5)).send().await.unwrap().status(), 200);
    collector.stop();
    disk.remount("ro");
    let before = contents(&collector.data_dir());
    let (content, said) = collector.serve();
    assert!(!content && said.contains("cannot write in the data directory"), "{said}");
    assert!(contents(&collector.data_dir()) == before);
    disk.remount("rw");
    collector.restart();
    assert_eq!(collector.total("custom").await, 5);
}

//! `verify`, `reconcile` and `prune`: a store that is sound is found to be, and what is not is named exactly.
#![cfg(feature = "server")]

mod support;

use rusqlite::Connection;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Collector, Folder, now, uuid};
use tallymark_collector::ingest::checked_batch::{Accepted, CheckedBatch, Fingerprint, Sdk};
use tallymark_collector::sites::KeyScope;
use tallymark_collector::store::embedded::{Embedded, Keep};
use tallymark_collector::store::query::{DAY, HOUR};

const ROUNDS: usize = 6;
const SENDERS: usize = 6;

/// Runs a command on a data directory: whether it was content, and what it said.
fn run(data_dir: &Path, arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tallymark-collector"))
        .args(arguments)
        .arg("--data-dir")
        .arg(data_dir)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
    (output.status.success(), said)
}

fn content(data_dir: &Path, arguments: &[&str]) -> String {
    let (content, said) = run(data_dir, arguments);
    assert!(content, "{arguments:?}: {said}");
    said
}

fn not_content(data_dir: &Path, arguments: &[&str]) -> String {
    let (content, said) = run(data_dir, arguments);
    assert!(!content, "{arguments:?}: {said}");
    said
}

/// A batch of all kinds of events, some of them late, some of them wrong.
fn random_batch() -> Value {
    let events: Vec<_> = (0..rand::random::<u32>() % 9)
        .map(|_| {
            let at = now() - u64::from(rand::random::<u32>()) % (3 * DAY);
            let key = rand::random::<u32>() % 7;
            let mut event = match rand::random::<u32>() % 4 {
                0 => {
                    json!({"event_type": "page_view", "session_id": "s", "url": format!("https://shop.example/{key}")})
                }
                1 => json!({"event_type": "button_click", "session_id": "s", "button_id": format!("\"b\\{key}\" ü")}),
                2 => json!({"event_type": "custom", "name": format!("n{key}"), "url": "https://shop.example/"}),
                _ => json!({"event_type": "none"}),
            };
            event["event_id"] = uuid().into();
            event["occurred_at"] = at.into();
            event
        })
        .collect();
    json!({"batch_id": uuid(), "sdk": "test/1", "events": events, "lost": {"queue_full": rand::random::<u32>() % 3}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_what_is_stored_after_any_crash() {
    let mut collector = Collector::start(&["--lake-roll-interval", "1s"]);
    for _ in 0..ROUNDS {
        let (answered, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let senders: Vec<_> = (0..SENDERS)
            .map(|_| {
                let url = format!("{}/v1/batch", collector.url);
                let (http, key) = (reqwest::Client::new(), collector.secret_key.clone());
                let (answered, again) = (Arc::clone(&answered), Arc::clone(&again));
                tokio::spawn(async move {
                    loop {
                        let known = rand::random::<bool>().then(|| again.lock().unwrap().pop()).flatten();
                        let batch = known.unwrap_or_else(random_batch);
                        let sent = http.post(&url).basic_auth("shop", Some(&key)).json(&batch).send().await;
                        if !sent.is_ok_and(|response| response.status() == 200) {
                            break;
                        }
                        again.lock().unwrap().push(batch);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let enough = 40 + rand::random::<u32>() as usize % 300;
        for _ in 0..6_000 {
            if answered.load(Ordering::Relaxed) >= enough || senders.iter().all(tokio::task::JoinHandle::is_finished) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // While it is running and being written to, and at the moment of its death.
        let data_dir = collector.data_dir();
        let said = tokio::task::spawn_blocking(move || {
            let said = content(&data_dir, &["reconcile"]);
            content(&data_dir, &["verify"]);
            said
        });
        assert!(said.await.unwrap().ends_with(": 0 counters differ\n"));
        collector.kill();
        for sender in senders {
            sender.await.unwrap();
        }
        content(&collector.data_dir(), &["reconcile"]);
        collector.restart();
    }
    // It has taken requests, so it listens for signals too.
    let batch = support::batch(1);
    assert_eq!(collector.post("/v1/batch", &batch).send().await.unwrap().status(), 200);
    collector.stop();
    content(&collector.data_dir(), &["verify"]);
    content(&collector.data_dir(), &["reconcile"]);
}

/// A store of one batch of `events` custom events for each of these times of receipt, all in sealed files. Every
/// event happened an hour before.
async fn store(received: &[u64], events: u32) -> Folder {
    let folder = Folder::new();
    commit(&folder.0, received, events).await;
    folder
}

async fn commit(data_dir: &Path, received: &[u64], events: u32) {
    let embedded = Embedded::open(data_dir, Duration::from_secs(3600)).unwrap();
    for &received_at in received {
        let batch_id = tallymark::BatchId::new(received_at, &mut rand::random::<u64>);
        let occurred_at = received_at - HOUR;
        let event = |index| Accepted {
            index,
            event_type: "custom",
            counter_key: format!("n{}", index % 2),
            hour: occurred_at / HOUR,
            line: json!({"event_id": uuid(), "event_type": "custom", "name": format!("n{}", index % 2),
                "username": "shop", "batch_id": batch_id, "occurred_at": occurred_at, "received_at": received_at})
            .to_string(),
        };
        let batch = CheckedBatch {
            username: "shop".into(),
            scope: KeyScope::Secret,
            repeatable: true,
            sdk: Sdk::None,
            batch_id,
            fingerprint: Fingerprint::of(&[]),
            received_at,
            events: (0..events).map(event).collect(),
            rejected: Vec::new(),
            retry: Vec::new(),
            lost: BTreeMap::new(),
        };
        embedded.commit(batch, Keep::LinesAndCounts).await.unwrap();
    }
    embedded.close().await.unwrap();
    drop(embedded);
    // A process that another test has just started may still hold files that were open here; unlocking releases them too.
    let lock = std::fs::File::open(data_dir.join("lock")).unwrap();
    for _ in 0..6_000 {
        if lock.try_lock().is_ok() {
            return lock.unlock().unwrap();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the data directory is not let go of");
}

fn files(data_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data_dir.join("raw")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

fn database(data_dir: &Path) -> Connection {
    Connection::open(data_dir.join("tallymark.db")).unwrap()
}

/// Noon of a day so many days ago.
fn days_ago(days: u64) -> u64 {
    now() / DAY * DAY - days * DAY + DAY / 2
}

#[tokio::test]
async fn a_counter_that_was_changed_is_named_and_repaired() {
    let store = store(&[days_ago(1)], 10).await;
    let data_dir = &store.0;
    let change = "UPDATE totals SET count = 9 WHERE key = 'n0'; DELETE FROM hours WHERE key = 'n1';
        INSERT INTO hours VALUES ('shop', 'custom', 'never', 0, 3)";
    database(data_dir).execute_batch(change).unwrap();
    let said = not_content(data_dir, &["reconcile"]);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 5, "{said}");
    assert_eq!(lines[0], "shop custom \"n0\" in total: counted 9, stored 5");
    assert!(lines[1].starts_with("shop custom \"n1\" in the hour 20"), "{said}");
    assert!(lines[1].ends_with("T11:00Z: counted 0, stored 5"), "{said}");
    assert_eq!(lines[2], "shop custom \"never\" in the hour 1970-01-01T00:00Z: counted 3, stored 0");
    assert_eq!(lines[3], "10 events stored, 0 removed by age: 3 counters differ");
    assert_eq!(not_content(data_dir, &["reconcile"]), said, "it was changed without being asked for");

    let repaired = content(data_dir, &["reconcile", "--repair"]);
    assert!(repaired.starts_with(lines[0]) && repaired.ends_with("\nrepaired\n"), "{repaired}");
    assert_eq!(content(data_dir, &["reconcile"]), "10 events stored, 0 removed by age: 0 counters differ\n");
}

#[tokio::test]
async fn a_file_that_is_gone_or_there_twice_is_named() {
    let store = store(&[days_ago(2), days_ago(1)], 4).await;
    let data_dir = &store.0;
    let file = &files(data_dir)[0];
    let copy = file.with_file_name("copy.ndjson");
    std::fs::copy(file, &copy).unwrap();
    let said = not_content(data_dir, &["verify"]);
    assert!(said.contains(": 4 events are stored twice, such as "), "{said}");
    for name in ["/copy.ndjson", file.file_name().unwrap().to_str().unwrap()] {
        assert!(said.contains(name), "{said}");
    }
    content(data_dir, &["reconcile"]);
    std::fs::remove_file(copy).unwrap();
    content(data_dir, &["verify"]);

    std::fs::remove_file(file).unwrap();
    content(data_dir, &["verify"]);
    let said = not_content(data_dir, &["reconcile"]);
    assert!(said.contains("shop custom all keys in total: counted 8, stored 4\n"), "{said}");
    assert!(said.contains("shop custom \"n1\" in total: counted 4, stored 2\n"), "{said}");
    assert_eq!(said.matches("counted 2, stored 0").count(), 2, "{said}");
    content(data_dir, &["reconcile", "--repair"]);
    content(data_dir, &["reconcile"]);
}

#[tokio::test]
async fn a_database_that_is_lost_is_counted_anew_and_a_lake_that_is_elsewhere_is_not_counted_away() {
    let store = store(&[days_ago(1)], 6).await;
    let data_dir = &store.0;
    std::fs::remove_file(data_dir.join("tallymark.db")).unwrap();
    let said = not_content(data_dir, &["reconcile"]);
    assert!(said.contains("cannot open the database"), "{said}");
    content(data_dir, &["reconcile", "--repair"]);
    let count = "SELECT count FROM totals WHERE username = 'shop' AND event_type = 'custom' AND key = ''";
    assert_eq!(database(data_dir).query_row(count, [], |row| row.get::<_, u64>(0)).unwrap(), 6);

    std::fs::remove_dir_all(data_dir.join("raw")).unwrap();
    let said = not_content(data_dir, &["reconcile", "--repair"]);
    assert!(said.contains("not repaired: nothing is stored here"), "{said}");
    assert_eq!(database(data_dir).query_row(count, [], |row| row.get::<_, u64>(0)).unwrap(), 6);
}

#[tokio::test]
async fn what_cannot_be_read_is_named_and_keeps_the_counters_as_they_are() {
    let store = store(&[days_ago(1)], 4).await;
    let data_dir = &store.0;
    let file = &files(data_dir)[0];
    let text = std::fs::read_to_string(file).unwrap();
    for (wrong, why) in [
        (text.replacen("\"event_id\":\"0", "\"event_id\":\"x", 1), "line 1: `event_id` is not a UUID"),
        (text.replacen("\"username\":\"shop\"", "\"username\":\"them\"", 1), "line 1: it belongs below username=them/"),
        (text[..text.len() - 5].into(), "line 4 has no end"),
        (format!("{text}{}", "x".repeat(3 << 20)), "line 5 has no end"),
        (format!("{text}{{}}\n"), "line 5: missing field"),
    ] {
        std::fs::write(file, wrong).unwrap();
        for command in ["verify", "reconcile"] {
            let said = not_content(data_dir, &[command]);
            assert!(said.contains(why), "{said}");
        }
        let said = not_content(data_dir, &["reconcile", "--repair"]);
        assert!(said.contains(why), "{said}");
        content(data_dir, &["prune", "--keep-days", "1"]);
    }
    std::fs::write(file, text).unwrap();
    content(data_dir, &["verify"]);
    content(data_dir, &["reconcile"]);
    std::fs::write(file.with_extension("open"), "").unwrap();
    assert!(not_content(data_dir, &["verify"]).contains(".open: not a sealed file"));
}

#[tokio::test]
async fn old_files_go_and_the_counters_stay() {
    let store = store(&[days_ago(40), days_ago(31), days_ago(30), days_ago(1), now()], 6).await;
    let data_dir = &store.0;
    let before = files(data_dir);
    let policy = ["prune", "--keep-days", "30", "--compress"];
    let said = content(data_dir, &[&policy[..], &["--dry-run"]].concat());
    assert_eq!((said.matches("would remove 1 files").count(), said.matches("would compress 1 files").count()), (2, 2));
    assert_eq!(files(data_dir), before);
    content(data_dir, &policy);
    let kept = files(data_dir);
    assert_eq!(kept.len(), 3, "{kept:?}");
    let compressed = |file: &&PathBuf| file.extension().unwrap() == "gz";
    assert_eq!(kept.iter().filter(compressed).count(), 2);
    assert!(before[..2].iter().all(|file| !file.parent().unwrap().exists()), "an empty folder was left");
    content(data_dir, &["verify"]);
    assert_eq!(content(data_dir, &["reconcile"]), "18 events stored, 12 removed by age: 0 counters differ\n");
    assert_eq!(content(data_dir, &policy), "", "there was nothing more to do");
    // More may come for a day whose files are removed.
    commit(data_dir, &[days_ago(40)], 2).await;
    content(data_dir, &["reconcile"]);
    content(data_dir, &policy);
    assert_eq!(content(data_dir, &["reconcile"]), "18 events stored, 14 removed by age: 0 counters differ\n");
    // What is removed is still a part of what the counters must be.
    database(data_dir).execute("UPDATE totals SET count = 18 WHERE key = ''", []).unwrap();
    let said = not_content(data_dir, &["reconcile"]);
    assert!(said.contains("counted 18, stored 32"), "{said}");
}

/// Each state that a crash can leave behind.
#[tokio::test]
async fn a_removal_or_compression_that_was_cut_off_is_carried_through() {
    let store = store(&[days_ago(40), days_ago(1)], 6).await;
    let data_dir = &store.0;
    let [old, recent] = &files(data_dir)[..] else { panic!("two files") };
    let (old_text, recent_text) = (std::fs::read(old).unwrap(), std::fs::read(recent).unwrap());
    content(data_dir, &["prune", "--keep-days", "30", "--compress"]);
    let reconciled = content(data_dir, &["reconcile"]);

    // Counted as removed, and not removed yet.
    std::fs::create_dir_all(old.parent().unwrap()).unwrap();
    std::fs::write(old, old_text).unwrap();
    let name = old.strip_prefix(data_dir.join("raw")).unwrap().to_str().unwrap();
    database(data_dir).execute("INSERT INTO pruning VALUES (?)", [name]).unwrap();
    assert_eq!(content(data_dir, &["reconcile"]), reconciled);
    assert!(not_content(data_dir, &["verify"]).contains("the removal of old files was cut off"));
    // Compressed, and not removed yet; and a compression that did not get that far.
    std::fs::write(recent, recent_text).unwrap();
    assert_eq!(content(data_dir, &["reconcile"]), reconciled);

    content(data_dir, &["prune", "--keep-days", "30", "--compress"]);
    assert!(!old.exists() && !recent.exists());
    content(data_dir, &["verify"]);
    assert_eq!(content(data_dir, &["reconcile"]), reconciled);
}

/// What a move to the lake will write again must not be removed before.
#[tokio::test]
async fn files_of_a_move_that_was_cut_off_are_left_alone() {
    let store = store(&[days_ago(40)], 6).await;
    let data_dir = &store.0;
    let file = &files(data_dir)[0];
    let name = file.file_stem().unwrap().to_str().unwrap();
    database(data_dir).execute("INSERT INTO roll VALUES (0, ?)", [name]).unwrap();
    content(data_dir, &["prune", "--keep-days", "30"]);
    assert!(file.exists());
    assert!(not_content(data_dir, &["verify"]).contains("a move to the lake was cut off"));
    commit(data_dir, &[], 0).await;
    content(data_dir, &["verify"]);
    content(data_dir, &["prune", "--keep-days", "30"]);
    assert!(!file.exists());
    content(data_dir, &["reconcile"]);
}

#[tokio::test]
async fn a_database_of_version_1_is_taken_over() {
    let store = store(&[days_ago(40), days_ago(1)], 6).await;
    let before =
        "DROP TABLE pruned; DROP TABLE pruning; DROP TABLE leaders; ALTER TABLE batches RENAME COLUMN scope TO key;
        PRAGMA user_version = 1";
    database(&store.0).execute_batch(before).unwrap();
    content(&store.0, &["prune", "--keep-days", "30"]);
    commit(&store.0, &[now()], 6).await;
    assert_eq!(content(&store.0, &["reconcile"]), "12 events stored, 6 removed by age: 0 counters differ\n");
}

#[tokio::test]
async fn a_running_collector_is_not_repaired_and_a_store_that_is_not_there_is_not_made() {
    let collector = Collector::start(&[]);
    let said = not_content(&collector.data_dir(), &["reconcile", "--repair"]);
    assert!(said.contains("another collector is using the data directory"), "{said}");
    content(&collector.data_dir(), &["prune", "--keep-days", "1"]);
    let empty = Folder::new();
    for command in ["verify", "reconcile"] {
        assert!(not_content(&empty.0, &[command]).contains("cannot open the database"));
    }
    assert_eq!(std::fs::read_dir(&empty.0).unwrap().count(), 0);
}

/// Whatever is in the way of a start, it is said, and what is there stays as it is.
#[tokio::test]
async fn a_database_that_cannot_be_used_is_refused_and_left_as_it_is() {
    let store = store(&[days_ago(1)], 6).await;
    let path = store.0.join("tallymark.db");
    let sites = store.0.join("sites.json");
    std::fs::write(&sites, r#"{"sites":[]}"#).unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut newer = good.clone();
    newer[60..64].copy_from_slice(&99_u32.to_be_bytes());
    for (bytes, why) in [(vec![b'x'; good.len()], "not a database"), (newer, "it has version 99")] {
        std::fs::write(&path, &bytes).unwrap();
        let serve = ["serve", "--listen", "127.0.0.1:0", "--sites", sites.to_str().unwrap()];
        for command in [&serve[..], &["verify"], &["reconcile", "--repair"], &["prune", "--keep-days", "1"]] {
            let said = not_content(&store.0, command);
            assert!(said.contains("cannot open the database") && said.contains(why), "{command:?}: {said}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
    }
    // No folder can be made there, by nobody.
    let serve = ["serve", "--listen", "127.0.0.1:0", "--sites", sites.to_str().unwrap()];
    let said = not_content(Path::new("/proc/tallymark"), &serve);
    assert!(said.contains("cannot make the data directory /proc/tallymark"), "{said}");
}

/// As on a full disk: refused with a time to retry, and accepted as soon as there is room.
#[tokio::test]
async fn a_store_that_cannot_be_written_says_when_to_retry() {
    let mut collector = Collector::start(&[]);
    let full = "CREATE TRIGGER full BEFORE INSERT ON batches BEGIN SELECT RAISE(ABORT, 'disk is full'); END";
    let db = database(&collector.data_dir());
    db.execute_batch(full).unwrap();
    let batch = support::batch(3);
    let refused = collector.post("/v1/batch", &batch).send().await.unwrap();
    assert_eq!(refused.status(), 503);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(collector.total("custom").await, 0);
    db.execute_batch("DROP TRIGGER full").unwrap();
    assert_eq!(collector.post("/v1/batch", &batch).send().await.unwrap().status(), 200);
    assert_eq!(collector.total("custom").await, 3);
    collector.stop();
    content(&collector.data_dir(), &["reconcile"]);
}

fn size(file: &Path) -> u64 {
    std::fs::metadata(file).unwrap().len()
}

fn day(time: u64) -> String {
    let seconds = (time / 1000) as i64;
    let db = Connection::open_in_memory().unwrap();
    db.query_row("SELECT strftime('%Y-%m-%d', ?, 'unixepoch')", [seconds], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn every_summary_line_says_what_is_there() {
    let (old, new) = (days_ago(40), days_ago(1));
    let store = store(&[old, new], 6).await;
    let folder = &store.0;
    assert_eq!(content(folder, &["verify"]), "12 events in 2 sealed files\n");
    assert_eq!(content(folder, &["reconcile"]), "12 events stored, 0 removed by age: 0 counters differ\n");
    let of = |time| files(folder).into_iter().find(|file| file.to_str().unwrap().contains(&day(time))).unwrap();
    let (old_bytes, new_bytes) = (size(&of(old)), size(&of(new)));
    let (old_day, new_day) = (day(old), day(new));
    let prune = ["prune", "--keep-days", "30", "--compress"];
    let said = format!(
        "{old_day}: would remove 1 files, {old_bytes} bytes\n{new_day}: would compress 1 files, {new_bytes} bytes\n"
    );
    assert_eq!(content(folder, &[&prune[..], &["--dry-run"]].concat()), said);
    let said = content(folder, &prune);
    let compressed = size(&of(new));
    assert_eq!(
        said,
        format!(
            "{old_day}: removed 1 files, {old_bytes} bytes\n\
             {new_day}: compressed 1 files, {new_bytes} bytes to {compressed}\n"
        )
    );
    assert_eq!(content(folder, &["verify"]), "6 events in 1 sealed files\n");
    assert_eq!(content(folder, &["reconcile"]), "6 events stored, 6 removed by age: 0 counters differ\n");
}

#[tokio::test]
async fn only_what_can_be_repeated_leaves_a_marker() {
    let mut collector = Collector::start(&[]);
    for (id, requests) in [(None, 5), (Some("order-7"), 3)] {
        for _ in 0..requests {
            let mut request = collector.post("/track", &json!({"name": "n"}));
            if let Some(id) = id {
                request = request.header("idempotency-key", id);
            }
            assert_eq!(request.send().await.unwrap().status(), 200);
        }
    }
    assert_eq!(collector.total("custom").await, 6);
    collector.stop();
    let markers = "SELECT count(*) FROM batches WHERE username <> ''";
    let markers: u64 = database(&collector.data_dir()).query_row(markers, [], |row| row.get(0)).unwrap();
    assert_eq!(markers, 1, "it was 6 when every single event left one");
}

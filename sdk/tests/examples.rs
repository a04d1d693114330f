//! Runs the examples as their first lines say, against a collector.
#![cfg(all(feature = "spool", feature = "tower"))]

#[path = "faults/collector.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod collector;

use collector::{Act, Collector, Folder};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

const ALL: [&str; 5] = ["quick_start", "blocking_cli", "typed_event", "importer", "axum_layer"];

#[test]
fn quick_start_delivers_its_three_events() {
    let site = Site::open();
    let output = run(&mut site.example("quick_start"), "");
    assert_ended_well(&output, "delivered 3 of 3 events");
    assert_eq!(
        site.events(),
        [
            "button_click buy session=xyz",
            r#"custom charge {"value":100}"#,
            "page_view https://shop.example/ session=xyz"
        ]
    );
}

#[test]
fn blocking_cli_delivers_in_the_next_run_what_it_could_not() {
    let (site, spool) = (Site::open(), Folder::new());
    site.close();
    let output = run(site.example("blocking_cli").arg(&spool.0), "a\nb\n");
    assert_ended_well(&output, "delivered 0 events, 1 left for the next run");
    assert_eq!((site.events().len(), spool.events().len()), (0, 1));

    site.reopen();
    let output = run(site.example("blocking_cli").arg(&spool.0), "a\nb\nc\n");
    assert_ended_well(&output, "delivered 2 events, 0 left for the next run");
    assert_eq!(site.events(), [r#"custom lines_counted {"lines":2}"#, r#"custom lines_counted {"lines":3}"#]);
    assert_eq!(spool.events().len(), 0);
}

#[test]
fn typed_event_delivers_its_own_types() {
    let site = Site::open();
    let output = run(&mut site.example("typed_event"), "");
    assert_ended_well(&output, "delivered 2 of 2 events");
    assert_eq!(
        site.events(),
        [
            r#"custom charged {"cents":4900,"coupon":"autumn","currency":"EUR"} user=u1"#,
            r#"custom signed_up {"plan":"yearly"} user=u1"#
        ]
    );
}

#[test]
fn importer_imports_each_order_once_however_often_it_runs() {
    let (site, folder) = (Site::open(), Folder::new());
    let (orders, done) = (folder.0.join("orders.csv"), folder.0.join("orders.done"));
    let import = || run(site.example("importer").arg(&orders).arg(&done), "");

    fs::write(&orders, "1763673600000,17,4900\n1763673600001,18,250\n").unwrap();
    assert_ended_well(&import(), "2 delivered, 0 failed, 0 known before");
    fs::write(&orders, "1763673600000,17,4900\n1763673600001,18,250\n1763673600002,19,1000\n").unwrap();
    assert_ended_well(&import(), "1 delivered, 0 failed, 2 known before");
    assert_ended_well(&import(), "0 delivered, 0 failed, 3 known before");
    assert_eq!(
        site.events(),
        [
            r#"custom order {"cents":1000,"order":"19"}"#,
            r#"custom order {"cents":250,"order":"18"}"#,
            r#"custom order {"cents":4900,"order":"17"}"#
        ]
    );

    fs::write(&orders, "1763673600000,20\n").unwrap();
    let output = import();
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("not an order: 1763673600000,20"), "{output:?}");
}

#[test]
fn axum_layer_tracks_the_pages_and_nothing_else() {
    let site = Site::open();
    let output = run(&mut site.example("axum_layer"), "");
    assert_ended_well(&output, "delivered 2 of 2 events");
    assert_eq!(
        site.events(),
        ["page_view https://shop.example/ session=s1", "page_view https://shop.example/?cup=2 session=s1"]
    );
}

#[test]
fn every_example_says_which_setting_is_missing() {
    for example in ALL {
        let output = run(program(example).args(["one", "two"]), "");
        assert!(!output.status.success(), "{example}");
        assert!(text(&output.stderr).contains("set TALLYMARK_ENDPOINT"), "{example}: {output:?}");
    }
}

#[test]
fn both_readmes_show_the_same_code() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    // Only the crate's own is compiled, as a doc test. A crate from the registry has no project around it.
    let Ok(project) = fs::read_to_string(root.join("../README.md")) else { return };
    let code = |text: &str| Some(text.split_once("```rust,no_run\n")?.1.split_once("```")?.0.to_owned());
    assert!(code(&project).is_some());
    assert_eq!(code(&project), code(&fs::read_to_string(root.join("README.md")).unwrap()));
}

/// A collector that notes the events, and may be out of service.
struct Site {
    collector: Collector,
    books: Arc<Mutex<Books>>,
}

#[derive(Default)]
struct Books {
    closed: bool,
    events: Vec<Value>,
}

impl Site {
    fn open() -> Self {
        let books = Arc::new(Mutex::new(Books::default()));
        let noted = Arc::clone(&books);
        let collector = Collector::start(move |request| {
            let mut books = noted.lock().unwrap();
            // shop:tms_secret
            if request.headers["authorization"] != "Basic c2hvcDp0bXNfc2VjcmV0" {
                return Act::Status(401, None);
            }
            if books.closed {
                return Act::Status(503, None);
            }
            let batch: tallymark::Batch = serde_json::from_str(request.text()).unwrap();
            books.events.extend(batch.events);
            Act::Take
        });
        Self { collector, books }
    }

    fn close(&self) {
        self.books.lock().unwrap().closed = true;
    }

    fn reopen(&self) {
        self.books.lock().unwrap().closed = false;
    }

    /// What has been tracked, a line each, sorted: batches may arrive in any order.
    fn events(&self) -> Vec<String> {
        let mut events: Vec<String> = self.books.lock().unwrap().events.iter().map(line).collect();
        let counted = self.collector.ledger.counted();
        assert!(counted.len() == events.len() && counted.values().all(|times| *times == 1), "{counted:?}");
        events.sort();
        events
    }

    fn example(&self, name: &str) -> Command {
        let mut command = program(name);
        command
            .env("TALLYMARK_ENDPOINT", self.collector.endpoint())
            .env("TALLYMARK_USERNAME", "shop")
            .env("TALLYMARK_KEY", "tms_secret");
        command
    }
}

fn line(event: &Value) -> String {
    let text = |name: &str| event[name].as_str();
    let mut line = text("event_type").unwrap().to_owned();
    if let Some(key) = text("url").or(text("button_id")).or(text("name")) {
        line += &format!(" {key}");
    }
    if let Some(properties) = event.get("properties").and_then(Value::as_object) {
        // Sorted, because the order of JSON objects depends on the features of other crates in the build.
        let sorted: std::collections::BTreeMap<_, _> = properties.iter().collect();
        line += &format!(" {}", serde_json::to_string(&sorted).unwrap());
    }
    for (name, field) in [("session", "session_id"), ("user", "user_id")] {
        if let Some(value) = text(field) {
            line += &format!(" {name}={value}");
        }
    }
    line
}

/// The example as cargo has built it, beside this test.
fn program(name: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().and_then(|folder| folder.parent()).unwrap().join("examples");
    let path = folder.join(name).with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        path.exists(),
        "`cargo test` builds {name}; before `cargo test --test examples`, `cargo build --examples` does"
    );
    let mut command = Command::new(path);
    for setting in ["ENDPOINT", "USERNAME", "KEY"] {
        command.env_remove(format!("TALLYMARK_{setting}"));
    }
    command
}

fn run(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Most do not read, and may have ended by now.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
fn assert_ended_well(output: &Output, last_line: &str) {
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output.stdout).lines().last(), Some(last_line), "{output:?}");
}

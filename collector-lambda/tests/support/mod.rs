//! A real collector process on a free port with a fresh data directory, and ways to look at what it keeps.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tallymark_collector::sites;

pub const ORIGIN: &str = "https://shop.example";

/// A folder that goes when the test ends.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("tallymark-{:016x}", rand::random::<u64>()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct Collector {
    pub url: String,
    pub secret_key: String,
    pub write_key: String,
    pub http: reqwest::Client,
    folder: Folder,
    arguments: Vec<String>,
    place: Place,
    process: Child,
}

/// Where a collector runs.
#[derive(Clone, Default)]
pub struct Place {
    /// A command that runs it.
    pub through: Vec<String>,
    /// What stands before its paths, for those outside.
    pub root: PathBuf,
    /// Variables that are set for it.
    pub environment: Vec<(String, String)>,
}

impl Place {
    /// The binary, to be run there.
    fn command(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_tallymark-collector");
        let words: Vec<&str> = self.through.iter().map(String::as_str).chain([binary]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        command.env("RUST_LOG", "info").envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

impl Collector {
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(&[], arguments)
    }

    /// With a log that says more or less.
    pub fn start_logging(level: &str, arguments: &[&str]) -> Self {
        Self::start_with(&[("RUST_LOG", level)], arguments)
    }

    /// With these variables.
    pub fn start_with(environment: &[(&str, &str)], arguments: &[&str]) -> Self {
        let environment = environment.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        Self::start_in(Folder::new(), Place { environment, ..Place::default() }, arguments)
    }

    /// In a place of its own, which has the folder too.
    pub fn start_in(folder: Folder, place: Place, arguments: &[&str]) -> Self {
        let keys = sites::file::add(&folder.0.join("sites.json"), "shop", &[ORIGIN.into()], false, |_| Ok(())).unwrap();
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let (process, url) = spawn(&folder.0, &place, &arguments);
        let (http, secret_key, write_key) = (reqwest::Client::new(), keys.secret_key, keys.write_key);
        Self { url, secret_key, write_key, http, folder, arguments, place, process }
    }

    pub fn sites(&self) -> PathBuf {
        self.folder.0.join("sites.json")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.0.join("log")).unwrap()
    }

    /// Waits until the log says this so often.
    pub async fn logged(&self, what: &str, times: usize) {
        for _ in 0..600 {
            if self.log().matches(what).count() >= times {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{what:?} was not logged {times} times: {}", self.log());
    }

    /// The most memory it has had at any time, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub fn process_id(&self) -> u32 {
        self.process.id()
    }

    pub fn data_dir(&self) -> PathBuf {
        let path = self.folder.0.join("data");
        if self.place.root.as_os_str().is_empty() {
            return path;
        }
        self.place.root.join(path.strip_prefix("/").unwrap())
    }

    /// Runs another command on its data directory, where it runs: whether that was content, and what it said.
    pub fn run(&self, arguments: &[&str]) -> (bool, String) {
        let data_dir = self.folder.0.join("data");
        let output = self.place.command().args(arguments).arg("--data-dir").arg(data_dir).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.success(), said)
    }

    /// Runs `serve` where it should refuse to, for a while.
    pub fn serve(&self) -> (bool, String) {
        let mut serve = serve(&self.folder.0, &self.place);
        let mut serve = serve.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        for _ in 0..600 {
            if let Some(status) = serve.try_wait().unwrap() {
                let mut said = String::new();
                serve.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                return (status.success(), said);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        serve.kill().unwrap();
        serve.wait().unwrap();
        panic!("it serves");
    }

    /// Ends it without warning.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    pub fn restart(&mut self) {
        (self.process, self.url) = spawn(&self.folder.0, &self.place, &self.arguments);
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http.post(format!("{}{path}", self.url)).basic_auth("shop", Some(&self.secret_key)).json(body)
    }

    pub async fn get(&self, path_and_query: &str) -> Value {
        let url = format!("{}{path_and_query}", self.url);
        let response = self.http.get(url).basic_auth("shop", Some(&self.secret_key)).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path_and_query}");
        response.json().await.unwrap()
    }

    pub async fn total(&self, event_type: &str) -> u64 {
        self.get(&format!("/v1/counts?event_type={event_type}")).await["total"].as_u64().unwrap()
    }

    /// How often each event is in the sealed files of the lake.
    pub fn lake(&self) -> BTreeMap<String, u32> {
        let mut events = BTreeMap::new();
        for line in lake_lines(&self.data_dir()) {
            *events.entry(line["event_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        events
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(folder: &Path, place: &Place, arguments: &[String]) -> (Child, String) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("log")).unwrap();
    let mut process = serve(folder, place).args(arguments).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
    (process, url)
}

fn serve(folder: &Path, place: &Place) -> Command {
    let mut serve = place.command();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(folder.join("data"));
    serve.arg("--sites").arg(folder.join("sites.json"));
    serve
}

/// All lines of all sealed files.
pub fn lake_lines(data_dir: &Path) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut folders = vec![data_dir.join("raw")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "ndjson") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(text.ends_with('\n'));
                for line in text.lines() {
                    let line: Value = serde_json::from_str(line).unwrap();
                    let place = path.parent().unwrap().to_string_lossy().into_owned();
                    let username = line["username"].as_str().unwrap();
                    let event_type = line["event_type"].as_str().unwrap();
                    assert!(place.contains(&format!("username={username}/event_type={event_type}/day=20")), "{place}");
                    lines.push(line);
                }
            }
        }
    }
    lines
}

pub fn uuid() -> String {
    tallymark::EventId::new(now(), &mut rand::random::<u64>).to_string()
}

pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A batch of custom events with fresh ids.
pub fn batch(events: usize) -> Value {
    let events: Vec<_> = (0..events)
        .map(|n| json!({"event_id": uuid(), "event_type": "custom", "occurred_at": now(), "name": format!("n{}", n % 5)}))
        .collect();
    json!({"batch_id": uuid(), "sdk": "test/1", "events": events})
}

//! Durable events a second, over HTTP on loopback, of the collector as it is run: `serve` on the embedded store.
//!
//! Beside it an axum router that answers each body with itself, in a process of its own: the most that can be had of
//! this machine with this client. The two take turns in short rounds, because a shared machine does not stay as
//! quick as it was; figures are medians over the rounds, ratios are of neighbouring rounds.
//!
//! In the end the collector must have counted exactly what was sent, and its lake must hold as many lines.

use axum::Router;
use axum::routing::post;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::Parser;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tallymark::{ButtonClick, Custom, Event, EventId, PageView};
use tallymark_collector::sites;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

const EVENT_TYPES: [&str; 3] = ["page_view", "button_click", "custom"];
/// How often memory is looked at while a load is held.
const SAMPLE_EVERY: Duration = Duration::from_secs(10);
/// In which /proc counts the time of processes.
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Parser)]
struct Options {
    /// Events in a batch.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [1, 10, 100])]
    batches: Vec<usize>,
    /// Connections, each with one request in flight.
    #[arg(long, value_name = "N", default_value_t = 64)]
    connections: usize,
    /// How often the two take turns.
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,
    /// How long a turn is.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    seconds: f64,
    /// Instead: hold a load for so long and watch the collector's memory.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<f64>,
    /// Events a second while doing so, in batches of the last size.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    rate: usize,
    /// A file to write the figures to, between the lines `<!-- load -->` and `<!-- end of load -->`, or `soak`.
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// What this binary starts itself with, for the bare server.
    #[arg(long, hide = true)]
    echo: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let options = Options::parse();
    if options.echo {
        return echo();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (name, figures) = match options.soak {
        Some(minutes) => ("soak", runtime.block_on(soak(&options, Duration::from_secs_f64(60.0 * minutes)))),
        None => ("load", runtime.block_on(compare(&options))),
    };
    println!("\n{figures}");
    if let Some(path) = &options.table {
        let text = fs::read_to_string(path).unwrap();
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->\n"));
        let (before, rest) = text.split_once(&begin).expect("the file has the first line");
        let (_, after) = rest.split_once(&end).expect("the file has the last line");
        fs::write(path, format!("{before}{begin}\n{figures}\n{end}{after}")).unwrap();
    }
}

/// The bare server. It ends with its parent process.
fn echo() {
    let serve = async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("listening on http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/batch", post(|body: Bytes| async { body }));
        axum::serve(listener, router).await.unwrap();
    };
    std::thread::spawn(|| tokio::runtime::Runtime::new().unwrap().block_on(serve));
    let _ = std::io::stdin().read(&mut [0]);
}

async fn compare(options: &Options) -> String {
    let collector = Server::collector();
    let echo = Server::echo();
    let mut sent = Sent::default();
    let mut text = format!(
        "{} connections, one request in flight on each; {} rounds of {} s for each server.\n\n\
         | events a batch | bytes | events/s | batches/s | p50 ms | p99 ms | CPU µs a batch | batches a transaction \
         | echo batches/s | p50 ms | p99 ms | CPU µs a batch | ratio | client's CPU µs a batch |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        options.connections, options.rounds, options.seconds
    );
    for &events in &options.batches {
        let mut rounds = (Vec::new(), Vec::new());
        // The first turn of each finds files and connections cold, and is not counted.
        for round in 0..=options.rounds {
            let theirs = load(&echo, events, options, None).await;
            let ours = load(&collector, events, options, None).await;
            let (rate, of_echo) = (ours.rate(), ours.rate() / theirs.rate());
            println!("{events:>3} a batch, round {round}: {rate:.0} batches/s, {:.1} % of the echo", 100.0 * of_echo);
            sent.add(&ours);
            if round > 0 {
                rounds.0.push(ours);
                rounds.1.push(theirs);
            }
        }
        let (ours, theirs) = rounds;
        let figures = |rounds: &[Round]| {
            let latencies = Latencies::of(rounds);
            format!(
                "{:.0} | {:.2} | {:.2} | {:.1}",
                median(rounds.iter().map(Round::rate)),
                latencies.at(0.50),
                latencies.at(0.99),
                median(rounds.iter().map(|round| round.cpu_per_batch(round.server_cpu)))
            )
        };
        text += &format!(
            "| {events} | {} | {:.0} | {} | {:.1} | {} | {:.1} % | {:.1} |\n",
            ours[0].body_bytes,
            median(ours.iter().map(Round::rate)) * events as f64,
            figures(&ours),
            median(ours.iter().map(|round| round.batches as f64 / round.transactions as f64)),
            figures(&theirs),
            100.0 * median(ours.iter().zip(&theirs).map(|(ours, theirs)| ours.rate() / theirs.rate())),
            median(ours.iter().map(|round| round.cpu_per_batch(round.client_cpu)))
        );
    }
    collector.check(&sent).await;
    text + "\n" + &collector.end(&sent)
}

async fn soak(options: &Options, time: Duration) -> String {
    let collector = Server::collector();
    let events = options.batches.last().copied().unwrap_or(100);
    let mut sent = Sent::default();
    let (began, mut samples) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        let turn = Options { seconds: SAMPLE_EVERY.as_secs_f64(), batches: Vec::new(), table: None, ..*options };
        let round = load(&collector, events, &turn, Some(options.rate)).await;
        sent.add(&round);
        let (at, rss) = (began.elapsed().as_secs_f64(), collector.rss());
        println!(
            "{at:>6.0} s  {rss:>6.1} MiB  {:>7.0} events/s  p99 {:.1} ms",
            round.rate() * events as f64,
            Latencies::of(std::slice::from_ref(&round)).at(0.99)
        );
        samples.push((at, rss));
    }
    let least = samples.iter().map(|(_, rss)| *rss).fold(f64::MAX, f64::min);
    let most = samples.iter().map(|(_, rss)| *rss).fold(0.0, f64::max);
    let second_half = &samples[samples.len() / 2..];
    collector.check(&sent).await;
    format!(
        "{} events/s in batches of {events} for {} s.\n\n\
         The collector's memory: {least:.1} to {most:.1} MiB, {:+.2} MiB a minute over all, {:+.2} over the second half.\n\n{}",
        options.rate,
        time.as_secs(),
        60.0 * slope(&samples),
        60.0 * slope(second_half),
        collector.end(&sent)
    )
}

/// What a turn has seen.
struct Round {
    took: Duration,
    batches: u64,
    events: u64,
    body_bytes: usize,
    /// Events of each type.
    types: [u64; 3],
    latencies: Vec<Duration>,
    server_cpu: Duration,
    client_cpu: Duration,
    /// Of the collector's database.
    transactions: u64,
}

impl Round {
    fn rate(&self) -> f64 {
        self.batches as f64 / self.took.as_secs_f64()
    }

    fn cpu_per_batch(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.batches as f64
    }
}

/// All that the collector must have counted.
#[derive(Default)]
struct Sent {
    events: u64,
    types: [u64; 3],
}

impl Sent {
    fn add(&mut self, round: &Round) {
        self.events += round.events;
        for (sum, events) in self.types.iter_mut().zip(round.types) {
            *sum += events;
        }
    }
}

/// One turn: on each connection one batch after the other, at so many events a second in all if there is a rate.
async fn load(server: &Server, events: usize, options: &Options, rate: Option<usize>) -> Round {
    let connections = options.connections;
    let pause = rate.map(|rate| Duration::from_secs_f64((connections * events) as f64 / rate as f64));
    let mut templates: Vec<_> = (0..connections).map(|_| Template::new(server, events)).collect();
    let body_bytes = templates.iter().map(|template| template.body_bytes).sum::<usize>() / connections;
    let mut streams = Vec::new();
    for _ in 0..connections {
        let stream = TcpStream::connect(&server.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        streams.push(stream);
    }
    let transactions = server.transactions().await;
    let (server_cpu, client_cpu) = (cpu_time(server.process.id()), cpu_time(std::process::id()));
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(options.seconds);
    let tasks: Vec<_> = (0..)
        .zip(streams.into_iter().zip(templates.drain(..)))
        .map(|(number, (mut stream, mut template))| {
            let is_echo = server.folder.is_none();
            tokio::spawn(async move {
                let (mut latencies, mut answer) = (Vec::new(), Vec::new());
                // Spread evenly, or all would come at once.
                let mut due = began + pause.unwrap_or_default().mul_f64(f64::from(number) / connections as f64);
                while Instant::now().max(due) < end {
                    if let Some(pause) = pause {
                        tokio::time::sleep_until(due.into()).await;
                        due = (due + pause).max(Instant::now());
                    }
                    template.renew();
                    let sent = Instant::now();
                    stream.write_all(&template.request).await.unwrap();
                    let body = read_answer(&mut stream, &mut answer).await;
                    latencies.push(sent.elapsed());
                    if is_echo {
                        assert_eq!(body.len(), template.body_bytes);
                    } else {
                        let expected = format!("\"duplicate\":false,\"accepted\":{events},");
                        assert!(contains(body, expected.as_bytes()), "{}", String::from_utf8_lossy(body));
                    }
                }
                (latencies, template.types)
            })
        })
        .collect();
    let mut round = Round {
        took: Duration::ZERO,
        batches: 0,
        events: 0,
        body_bytes,
        types: [0; 3],
        latencies: Vec::new(),
        server_cpu: Duration::ZERO,
        client_cpu: Duration::ZERO,
        transactions: 0,
    };
    for task in tasks {
        let (latencies, types) = task.await.unwrap();
        let batches = latencies.len() as u64;
        round.batches += batches;
        round.events += batches * events as u64;
        for (sum, in_batch) in round.types.iter_mut().zip(types) {
            *sum += batches * in_batch;
        }
        round.latencies.extend(latencies);
    }
    round.took = began.elapsed();
    round.server_cpu = cpu_time(server.process.id()) - server_cpu;
    round.client_cpu = cpu_time(std::process::id()) - client_cpu;
    round.transactions = server.transactions().await - transactions;
    round
}

/// A request whose ids are overwritten in place each time.
struct Template {
    request: Vec<u8>,
    body_bytes: usize,
    /// Where the batch's id and those of its events are.
    ids: Vec<usize>,
    types: [u64; 3],
}

impl Template {
    fn new(server: &Server, events: usize) -> Self {
        let nil = EventId::from(Uuid::nil());
        let mut types = [0; 3];
        let mut bodies = Vec::new();
        for _ in 0..events {
            let (event, kind) = event();
            types[kind] += 1;
            bodies.push(event.encode(now(), &mut || 0).unwrap().json);
        }
        // As the client for Rust writes it.
        let body = format!("{{\"batch_id\":\"{nil}\",\"sdk\":\"load/1\",\"events\":[\n{}\n]}}", bodies.join(",\n"));
        let head = format!(
            "POST /v1/batch HTTP/1.1\r\nhost: {}\r\nauthorization: Basic {}\r\ncontent-type: application/json\r\n\
             user-agent: tallymark-load\r\ncontent-length: {}\r\n\r\n",
            server.address,
            server.credentials,
            body.len()
        );
        let request = format!("{head}{body}");
        let ids = request.match_indices(&nil.to_string()).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(ids.len(), 1 + events);
        Self { request: request.into(), body_bytes: body.len(), ids, types }
    }

    fn renew(&mut self) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let first = NEXT.fetch_add(self.ids.len() as u64, Ordering::Relaxed);
        let time = u128::from(now()) << 80;
        for (number, at) in (first..).zip(&self.ids) {
            let id = Uuid::from_u128(time | 0x7000_8000_0000_0000_0000 | u128::from(number));
            id.hyphenated().encode_lower(&mut self.request[*at..]);
        }
    }
}

/// An event as sites have them, and the number of its type. Few keys are counted most of the time.
fn event() -> (Event, usize) {
    let rank = |keys: f64| (rand::random::<f64>().powi(2) * keys) as u32;
    let session = format!("{:016x}", rand::random::<u64>());
    let id = EventId::from(Uuid::nil());
    match rand::random_range(0..20) {
        0..12 => {
            let view = PageView::new(format!("https://shop.example/products/{}", rank(50.0)));
            (view.referral_url("https://search.example/").title("A product").session_id(session).event_id(id).into(), 0)
        }
        12..17 => {
            let click = ButtonClick::new(format!("button-{}", rank(20.0)));
            (click.session_id(session).event_id(id).into(), 1)
        }
        _ => {
            let custom = Custom::new(["charge", "signup", "search"][rank(3.0) as usize]);
            let custom = custom.property("value", 12.5).property("currency", "EUR").property("items", 3);
            (custom.session_id(session).event_id(id).into(), 2)
        }
    }
}

/// Reads one answer, which must be a 200, and returns its body.
async fn read_answer<'a>(stream: &mut TcpStream, answer: &'a mut Vec<u8>) -> &'a [u8] {
    answer.clear();
    loop {
        assert_ne!(stream.read_buf(answer).await.unwrap(), 0, "cut off");
        let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&answer[..end]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{}", String::from_utf8_lossy(answer));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let whole = end + 4 + length.parse::<usize>().unwrap();
        while answer.len() < whole {
            assert_ne!(stream.read_buf(answer).await.unwrap(), 0, "cut off");
        }
        return &answer[end + 4..whole];
    }
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|part| part == what)
}

/// A server under load. It ends with this.
struct Server {
    process: Child,
    _stdin: Option<ChildStdin>,
    address: String,
    credentials: String,
    /// The collector's.
    folder: Option<PathBuf>,
    metrics: String,
}

impl Server {
    fn echo() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Self::start(command.arg("--echo"), String::new(), None, String::new())
    }

    /// On the disk that the build is on: /tmp may be memory.
    fn collector() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("load-{:016x}", rand::random::<u64>()));
        // Nobody says on which port it listens there, so it must be one that is known to be free.
        let metrics = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let keys = sites::file::add(&folder.join("sites.json"), "shop", &[], false, |_| Ok(())).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tallymark-collector"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--rate-limit-per-key", "0", "--rate-limit-per-address", "0"])
            .args(["--metrics-listen", &metrics])
            .arg("--sites")
            .arg(folder.join("sites.json"))
            .arg("--data-dir")
            .arg(folder.join("data"))
            .stderr(File::create(folder.join("log")).unwrap());
        Self::start(&mut command, STANDARD.encode(format!("shop:{}", keys.secret_key)), Some(folder), metrics)
    }

    fn start(command: &mut Command, credentials: String, folder: Option<PathBuf>, metrics: String) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://").expect("it listens").to_owned();
        Self { _stdin: process.stdin.take(), process, address, credentials, folder, metrics }
    }

    /// What it has in memory, in MiB.
    fn rss(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// What it has written to the disk so far, in bytes.
    fn written(&self) -> u64 {
        let io = fs::read_to_string(format!("/proc/{}/io", self.process.id())).unwrap();
        io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
    }

    async fn transactions(&self) -> u64 {
        if self.metrics.is_empty() {
            return 0;
        }
        let text = self.get(&self.metrics, "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix("tallymark_store_transactions_total "));
        line.unwrap().parse().unwrap()
    }

    async fn get(&self, address: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let credentials = &self.credentials;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Basic {credentials}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        String::from_utf8_lossy(read_answer(&mut stream, &mut Vec::new()).await).into_owned()
    }

    async fn check(&self, sent: &Sent) {
        for (event_type, sent) in EVENT_TYPES.iter().zip(sent.types) {
            let answer = self.get(&self.address, &format!("/v1/counts?event_type={event_type}")).await;
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            assert_eq!(answer["total"], sent, "{event_type}: {answer}");
        }
    }

    /// Stops the collector and looks at what it leaves.
    fn end(mut self, sent: &Sent) -> String {
        let rss = self.rss();
        let pid = self.process.id().to_string();
        let began = Instant::now();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let mut written = 0;
        while self.process.try_wait().unwrap().is_none() {
            // Gone with the process.
            written = std::panic::catch_unwind(|| self.written()).unwrap_or(written);
            std::thread::sleep(Duration::from_millis(5));
        }
        let took = began.elapsed();
        let data = self.folder.as_ref().unwrap().join("data");
        let (mut lines, mut lake) = (0, 0);
        walk(&data.join("raw"), &mut |file| {
            let text = fs::read(file).unwrap();
            lake += text.len() as u64;
            lines += text.iter().filter(|byte| **byte == b'\n').count() as u64;
        });
        assert_eq!(lines, sent.events, "lines in the lake");
        let database = fs::metadata(data.join("tallymark.db")).unwrap().len();
        let per_event = |bytes: u64| bytes as f64 / sent.events as f64;
        format!(
            "{} events, all counted and all in the lake, none twice. {rss:.1} MiB in memory before it was stopped, which \
             took {:.1} s.\n\nBytes an event: {:.0} in the lake, {:.1} in the database ({:.0} MiB), {:.0} written to the \
             disk in all.\n",
            sent.events,
            took.as_secs_f64(),
            per_event(lake),
            per_event(database),
            database as f64 / 1024.0 / 1024.0,
            per_event(written)
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(folder) = &self.folder {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn walk(folder: &Path, found: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { walk(&path, found) } else { found(&path) }
    }
}

/// What a process has used of the processors so far.
fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // After the name, which may hold anything.
    let fields = stat.rsplit(") ").next().unwrap().split(' ').collect::<Vec<_>>();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_secs_f64(ticks as f64 / TICKS_PER_SECOND)
}

/// In milliseconds, in order.
struct Latencies(Vec<Duration>);

impl Latencies {
    fn of(rounds: &[Round]) -> Self {
        let mut all: Vec<_> = rounds.iter().flat_map(|round| round.latencies.iter().copied()).collect();
        all.sort_unstable();
        Self(all)
    }

    fn at(&self, part: f64) -> f64 {
        self.0[(part * (self.0.len() - 1) as f64) as usize].as_secs_f64() * 1e3
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / n, y + point.1 / n));
    let products = |of: &dyn Fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>();
    products(&|point| (point.0 - x) * (point.1 - y)) / products(&|point| (point.0 - x).powi(2))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

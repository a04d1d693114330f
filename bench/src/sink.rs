//! One collector for the wire formats of all clients: it finds the numbers that the benchmark puts into events, and
//! accepts them.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the sink does with a request.
#[derive(Clone, Copy, PartialEq)]
pub enum Mood {
    Takes,
    /// Answers 503.
    Refuses,
    /// Takes what comes, but its answer is lost.
    LosesAnswers,
}

struct State {
    mood: Mood,
    /// How often each event has arrived.
    arrivals: Vec<u32>,
    distinct: usize,
    last: Instant,
    requests: usize,
    /// Tallymark's collector deduplicates batches by id, so a repeated one does not count.
    batches: HashSet<String>,
}

#[derive(Clone)]
pub struct Sink(Arc<Mutex<State>>);

/// What has arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrived {
    pub distinct: usize,
    pub twice: usize,
    pub last: Instant,
    pub requests: usize,
}

/// A port without a listener.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The text by which the sink knows event `n`.
pub fn marker(n: usize) -> String {
    format!("evt-{n:08}")
}

impl Sink {
    pub fn new(events: usize) -> Self {
        let state = State {
            mood: Mood::Takes,
            arrivals: vec![0; events],
            distinct: 0,
            last: Instant::now(),
            requests: 0,
            batches: HashSet::new(),
        };
        Self(Arc::new(Mutex::new(state)))
    }

    pub fn listen(&self, address: SocketAddr) {
        let listener = TcpListener::bind(address).unwrap();
        let sink = self.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let sink = sink.clone();
                std::thread::spawn(move || sink.serve(stream));
            }
        });
    }

    pub fn set(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    pub fn arrived(&self) -> Arrived {
        let state = self.0.lock().unwrap();
        let twice = state.arrivals.iter().filter(|times| **times > 1).count();
        Arrived { distinct: state.distinct, twice, last: state.last, requests: state.requests }
    }

    /// Waits until all events have arrived, or until nothing new has for `quiet`.
    pub fn settle(&self, events: usize, quiet: Duration) -> Arrived {
        let mut seen = (0, Instant::now());
        loop {
            let arrived = self.arrived();
            if arrived.distinct != seen.0 {
                seen = (arrived.distinct, Instant::now());
            }
            if arrived.distinct == events || seen.1.elapsed() > quiet {
                return arrived;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::with_capacity(256 * 1024, stream);
        loop {
            let mut path = String::new();
            reader.read_line(&mut path).ok().filter(|bytes| *bytes > 0)?;
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
                if line == "\r\n" {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            let (status, answer) = self.take(&path, &body)?;
            let head =
                format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}", answer.len());
            reader.get_mut().write_all(format!("{head}\r\n\r\n{answer}").as_bytes()).ok()?;
        }
    }

    /// Takes a request and gives the answer, or none.
    fn take(&self, path: &str, body: &[u8]) -> Option<(&'static str, String)> {
        let found: Vec<usize> = body
            .windows(4)
            .enumerate()
            .filter(|(_, window)| window == b"evt-")
            .filter_map(|(at, _)| str::from_utf8(body.get(at + 4..at + 12)?).ok()?.parse().ok())
            .collect();
        let ours = path.contains(" /v1/batch") && body.starts_with(b"{\"batch_id\":\"");
        let id = ours.then(|| String::from_utf8_lossy(&body[13..49]).into_owned());
        let mut state = self.0.lock().unwrap();
        state.requests += 1;
        if state.mood == Mood::Refuses {
            return Some(("503 Service Unavailable", "{}".into()));
        }
        let known = id.as_ref().is_some_and(|id| !state.batches.insert(id.clone()));
        if !known {
            for event in &found {
                state.arrivals[*event] += 1;
                state.distinct += usize::from(state.arrivals[*event] == 1);
            }
            state.last = Instant::now();
        }
        if state.mood == Mood::LosesAnswers {
            return None;
        }
        let answer = match id {
            Some(id) => format!(
                r#"{{"batch_id":"{id}","received_at":0,"duplicate":{known},"accepted":{},"rejected":[],"retry":[]}}"#,
                found.len()
            ),
            None => r#"{"status":1,"code":200,"success":true}"#.into(),
        };
        Some(("200 OK", answer))
    }
}

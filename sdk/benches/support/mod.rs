//! A collector on loopback that costs almost nothing, and helpers for the benchmarks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tallymark::{Builder, Client, PageView};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Accepts every batch, and answers with a receipt unless it stalls.
#[derive(Default)]
pub(crate) struct Sink {
    pub(crate) events: AtomicU64,
    stalled: Mutex<bool>,
    released: Condvar,
}

impl Sink {
    /// Starts one, and returns it with its endpoint.
    pub(crate) fn start() -> (Arc<Self>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let sink = Arc::new(Self::default());
        let shared = Arc::clone(&sink);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let sink = Arc::clone(&shared);
                std::thread::spawn(move || sink.serve(stream.unwrap()));
            }
        });
        (sink, endpoint)
    }

    /// While it is stalled, it reads requests and does not answer.
    pub(crate) fn stall(&self, stalled: bool) {
        *self.stalled.lock().unwrap() = stalled;
        self.released.notify_all();
    }

    fn serve(&self, stream: TcpStream) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let mut reader = BufReader::with_capacity(256 * 1024, stream);
        loop {
            let mut length = 0;
            let mut line = String::new();
            while {
                line.clear();
                reader.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
                line != "\r\n"
            } {
                if let Some(value) = line.strip_prefix("content-length: ") {
                    length = value.trim().parse().ok()?;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).ok()?;
            // As our bodies are written: the id at byte 13, an event a line.
            let id = str::from_utf8(body.get(13..49)?).ok()?;
            let events = body.windows(2).filter(|pair| pair == b"\n{").count();
            drop(self.released.wait_while(self.stalled.lock().unwrap(), |stalled| *stalled));
            self.events.fetch_add(events as u64, Ordering::Relaxed);
            let receipt = format!(
                r#"{{"batch_id":"{id}","received_at":0,"duplicate":false,"accepted":{events},"rejected":[],"retry":[]}}"#
            );
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{receipt}", receipt.len());
            reader.get_mut().write_all(answer.as_bytes()).ok()?;
        }
    }
}

/// The event that everything is measured with: about 180 bytes of JSON.
pub(crate) fn event() -> PageView {
    PageView::new("https://shop.example/tea?cup=2").session_id("0192f3c1-5b8e")
}

pub(crate) fn client(endpoint: &str) -> Builder {
    Client::builder(endpoint, "shop", "tms_secret")
}

/// A directory that is removed with this value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    /// `TALLYMARK_BENCH_DIR` chooses the disk.
    pub(crate) fn new(name: &str) -> Self {
        let parent = std::env::var_os("TALLYMARK_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let path = parent.join(format!("tallymark-bench-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

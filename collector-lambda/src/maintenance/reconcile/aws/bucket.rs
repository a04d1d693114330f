//! Reads the lines of the lake's objects in S3.

use crate::maintenance::reconcile::aws::table_scan::TableScan;
use crate::maintenance::reconcile::progress;
use crate::store::aws;
use crate::store::embedded::lake::LINE_BYTES;
use crate::store::query::DAY;
use crate::{Error, chain};
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use flate2::write::MultiGzDecoder;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

/// How often an object is read whose connection breaks.
const TRIES: u32 = 5;

/// A bucket, and how the keys of its objects begin.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    name: String,
    prefix: String,
}

impl FromStr for Bucket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("s3://").ok_or("use s3://BUCKET/PREFIX")?;
        let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
        if name.is_empty() {
            return Err("use s3://BUCKET/PREFIX".into());
        }
        Ok(Self { name: name.into(), prefix: prefix.into() })
    }
}

/// The objects of the lake.
pub(super) struct LakeBucket {
    client: Client,
    bucket: Bucket,
}

impl LakeBucket {
    pub(super) fn new(config: &SdkConfig, bucket: Bucket) -> Self {
        let (retries, timeouts) = aws::patience();
        // Elsewhere than at AWS a bucket seldom has a host name of its own.
        let elsewhere = config.endpoint_url().is_some() || std::env::var_os("AWS_ENDPOINT_URL_S3").is_some();
        let config = aws_sdk_s3::config::Builder::from(config).retry_config(retries).timeout_config(timeouts);
        Self { client: Client::from_conf(config.force_path_style(elsewhere).build()), bucket }
    }

    /// Reads the objects, or those that may have events from a time on. Says which cannot be read.
    pub(super) async fn read(
        &self,
        from: Option<u64>,
        scan: &TableScan,
        wrong: &mut dyn FnMut(String),
    ) -> Result<(), Error> {
        // Nothing is received before it happens. A day more, as clocks differ.
        let from = from.map_or(0, |from| (from.saturating_sub(DAY) / 1000) as i64);
        let Bucket { name, prefix } = &self.bucket;
        let (mut objects, mut errors) = (0, 0_u64);
        let mut pages = self.client.list_objects_v2().bucket(name).prefix(prefix).into_paginator().send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| aws::unavailable("The lake", &format!("the bucket {name}"), error))?;
            for object in page.contents() {
                let Some(key) = object.key() else { continue };
                if is_error_output(&key[prefix.len().min(key.len())..]) {
                    errors += 1;
                } else if object.size() != Some(0) && object.last_modified().is_none_or(|at| at.secs() >= from) {
                    objects += 1;
                    self.read_object(key, scan, wrong).await?;
                }
            }
        }
        progress(&format!("read {objects} objects, and not {errors} of error output"));
        Ok(())
    }

    async fn read_object(&self, key: &str, scan: &TableScan, wrong: &mut dyn FnMut(String)) -> Result<(), Error> {
        let mut waited = Duration::from_millis(100);
        for attempt in 1.. {
            // What was read before the connection broke off is the same again.
            let mut lines = Lines::new(scan);
            let why = match self.pour(key, &mut lines).await {
                Ok(()) => None,
                Err(_) if lines.failed.is_some() => None,
                Err(Broken::Connection(_)) if attempt < TRIES => {
                    tokio::time::sleep(waited).await;
                    waited *= 3;
                    continue;
                }
                Err(Broken::Connection(why) | Broken::Object(why)) => Some(why),
            };
            if let Some(error) = lines.failed {
                return Err(error);
            }
            let more =
                if lines.unreadable > 1 { format!(", and {} more lines", lines.unreadable - 1) } else { String::new() };
            for why in lines.first.map(|why| why + &more).into_iter().chain(why) {
                wrong(format!("{key}: {why}"));
            }
            break;
        }
        Ok(())
    }

    /// Takes the lines of an object, compressed or not, as they come in.
    async fn pour(&self, key: &str, lines: &mut Lines<'_>) -> Result<(), Broken> {
        let call = self.client.get_object().bucket(&self.bucket.name).key(key);
        // The SDK has tried this as often as it is worth it.
        let mut body = call.send().await.map_err(|error| Broken::Object(chain(&error)))?.body;
        let mut start = Vec::new();
        let mut more = true;
        while more && start.len() < MAGIC_BYTES {
            match body.try_next().await.map_err(|error| Broken::Connection(chain(&error)))? {
                Some(chunk) => start.extend_from_slice(&chunk),
                None => more = false,
            }
        }
        if PARQUET.iter().any(|magic| start.starts_with(magic)) {
            return Err(Broken::Object("not newline-delimited JSON".into()));
        }
        let mut reader = if start.starts_with(GZIP) {
            Reader::Gzip(Box::new(MultiGzDecoder::new(lines)))
        } else {
            Reader::Plain(lines)
        };
        reader.write_all(&start)?;
        while let Some(chunk) = body.try_next().await.map_err(|error| Broken::Connection(chain(&error)))? {
            reader.write_all(&chunk)?;
        }
        Ok(reader.end()?)
    }
}

const MAGIC_BYTES: usize = 4;
const GZIP: &[u8] = &[0x1f, 0x8b];
const PARQUET: [&[u8]; 2] = [b"PAR1", b"ORC"];

/// Whether Firehose has put what it could not deliver here: by the folder's name below the lake's, such as
/// `processing-failed/` or `errors/`.
fn is_error_output(path: &str) -> bool {
    let mut folders = path.rsplit('/').skip(1);
    folders.any(|folder| matches!(folder, "error" | "errors") || folder.ends_with("-failed"))
}

/// Why an object was not read to its end.
enum Broken {
    Connection(String),
    Object(String),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Object(error.to_string())
    }
}

/// Cuts what is written to it into lines.
struct Lines<'a> {
    scan: &'a TableScan,
    line: Vec<u8>,
    number: u64,
    unreadable: u64,
    /// What is wrong with the first line that cannot be read.
    first: Option<String>,
    /// Why it cannot go on, whatever comes.
    failed: Option<Error>,
}

impl<'a> Lines<'a> {
    fn new(scan: &'a TableScan) -> Self {
        Self { scan, line: Vec::new(), number: 0, unreadable: 0, first: None, failed: None }
    }

    fn take(&mut self) -> io::Result<()> {
        self.number += 1;
        // Some tools leave blank lines between objects that they join.
        if self.line.trim_ascii().is_empty() {
            self.line.clear();
            return Ok(());
        }
        match self.scan.take_line(&self.line) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                self.unreadable += 1;
                self.first.get_or_insert_with(|| format!("line {}: {why}", self.number));
            }
            Err(error) => {
                self.failed = Some(error);
                return Err(io::Error::other("cannot be counted"));
            }
        }
        self.line.clear();
        Ok(())
    }

    /// The last line may have no newline.
    fn end(&mut self) -> io::Result<()> {
        if self.line.is_empty() { Ok(()) } else { self.take() }
    }
}

impl Write for Lines<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_end) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            if self.line.len() + text.len() > LINE_BYTES as usize {
                return Err(io::Error::other(format!("line {} is too long", self.number + 1)));
            }
            self.line.extend_from_slice(text);
            if is_end {
                self.take()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Reader<'a, 'b> {
    Plain(&'a mut Lines<'b>),
    Gzip(Box<MultiGzDecoder<&'a mut Lines<'b>>>),
}

impl Reader<'_, '_> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(lines) => lines.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
        }
    }

    fn end(self) -> io::Result<()> {
        match self {
            Self::Plain(lines) => lines.end(),
            Self::Gzip(decoder) => decoder.finish()?.end(),
        }
    }
}

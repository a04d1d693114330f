//! Local AWS for one test binary: `ministack` on a free port, and what is needed in it.
#![allow(dead_code, reason = "each test binary uses a part of this")]

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::Credentials;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType, TimeToLiveSpecification,
};
use aws_sdk_firehose::types::{BufferingHints, ExtendedS3DestinationConfiguration};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The access key that stands for any in local AWS.
pub(crate) const KEY: &str = "test";
pub(crate) const REGION: &str = "eu-central-1";

/// Where local AWS listens. The first who asks starts it; it ends with this process.
pub(crate) fn endpoint() -> &'static str {
    static LOCAL: OnceLock<(String, Child)> = OnceLock::new();
    &LOCAL.get_or_init(start).0
}

fn start() -> (String, Child) {
    let program = std::env::var_os("MINISTACK").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.tools/venv/bin/ministack")),
        PathBuf::from,
    );
    assert!(
        program.exists(),
        "there is no local AWS at {}: run `.ci/tools python`, or set MINISTACK",
        program.display()
    );
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // The shell ends it when its own input ends, and that is when this process is gone, however it went.
    let mut process = Command::new("sh")
        .args(["-c", r#""$0" & cat; kill $!"#])
        .arg(program)
        .env("BIND_HOST", "127.0.0.1")
        .env("GATEWAY_PORT", port.to_string())
        .env("LOG_LEVEL", "ERROR")
        .env("TMPDIR", env!("CARGO_TARGET_TMPDIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let by = Instant::now() + Duration::from_secs(60);
    while !is_healthy(port) {
        assert!(process.try_wait().unwrap().is_none() && Instant::now() < by, "local AWS does not start");
        std::thread::sleep(Duration::from_millis(50));
    }
    (format!("http://127.0.0.1:{port}"), process)
}

fn is_healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /_ministack/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// How to reach AWS at `endpoint`.
pub(crate) async fn config(endpoint: &str) -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .region(Region::from_static(REGION))
        .credentials_provider(Credentials::new(KEY, KEY, None, None, "test"))
        .endpoint_url(endpoint)
        .load()
        .await
}

/// A new table for counters, and its name.
pub(crate) async fn new_table() -> String {
    let client = aws_sdk_dynamodb::Client::new(&config(endpoint()).await);
    let name = format!("counters-{:016x}", rand::random::<u64>());
    let key =
        |name: &str, key_type| KeySchemaElement::builder().attribute_name(name).key_type(key_type).build().unwrap();
    let text = |name: &str| {
        let attribute = AttributeDefinition::builder().attribute_name(name);
        attribute.attribute_type(ScalarAttributeType::S).build().unwrap()
    };
    let table = client.create_table().table_name(&name).billing_mode(BillingMode::PayPerRequest);
    let table = table.key_schema(key("pk", KeyType::Hash)).key_schema(key("sk", KeyType::Range));
    table.attribute_definitions(text("pk")).attribute_definitions(text("sk")).send().await.unwrap();
    let expiry = TimeToLiveSpecification::builder().enabled(true).attribute_name("expires_at").build().unwrap();
    client.update_time_to_live().table_name(&name).time_to_live_specification(expiry).send().await.unwrap();
    name
}

/// A new delivery stream into a bucket of the same name, and that name.
pub(crate) async fn new_stream() -> String {
    let name = format!("lake-{:016x}", rand::random::<u64>());
    let place = format!(
        "<CreateBucketConfiguration><LocationConstraint>{REGION}</LocationConstraint></CreateBucketConfiguration>"
    );
    let made = reqwest::Client::new().put(format!("{}/{name}", endpoint())).body(place).send().await.unwrap();
    assert!(made.status().is_success(), "{made:?}");
    let bucket = ExtendedS3DestinationConfiguration::builder()
        .bucket_arn(format!("arn:aws:s3:::{name}"))
        .role_arn("arn:aws:iam::000000000000:role/firehose")
        .buffering_hints(BufferingHints::builder().interval_in_seconds(60).size_in_mbs(1).build())
        .build()
        .unwrap();
    let client = aws_sdk_firehose::Client::new(&config(endpoint()).await);
    let stream = client.create_delivery_stream().delivery_stream_name(&name);
    stream.extended_s3_destination_configuration(bucket).send().await.unwrap();
    name
}

/// All lines in the bucket of a stream.
pub(crate) async fn lines(stream: &str) -> Vec<Value> {
    let get = async |path: &str| {
        let answer = reqwest::get(format!("{}/{stream}{path}", endpoint())).await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        answer.text().await.unwrap()
    };
    let mut lines = Vec::new();
    let mut after = String::new();
    loop {
        let list = get(&format!("?list-type=2&start-after={after}")).await;
        let keys: Vec<_> = list.split("<Key>").skip(1).map(|rest| rest.split("</Key>").next().unwrap()).collect();
        let Some(last) = keys.last() else { return lines };
        after = (*last).to_owned();
        for key in keys {
            let text = get(&format!("/{key}")).await;
            assert!(text.ends_with('\n'), "a line ends with a newline: {text:?}");
            lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
    }
}

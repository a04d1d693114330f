//! The authorizer with a secret in memory: what it answers to which request, and how soon it learns of a change.
#![expect(clippy::unwrap_used, reason = "what goes wrong here fails a test")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tallymark_collector::Error;
use tallymark_collector::sites::Sites;
use tallymark_collector::sites::file::NewKeys;
use tallymark_collector::sites::secret::{LIFETIME, SecretSource, SecretValue, SitesSecret};
use tallymark_pipeline::authorizer::{NoSites, authorize};

/// A secret that can be changed, or made to fail.
#[derive(Clone, Default)]
struct Fake {
    json: Arc<Mutex<Option<String>>>,
    reads: Arc<AtomicUsize>,
}

impl Fake {
    fn set(&self, json: Option<String>) {
        *self.json.lock().unwrap() = json;
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::Relaxed)
    }
}

impl SecretSource for Fake {
    async fn read(&self) -> Result<SecretValue, Error> {
        let version = self.reads.fetch_add(1, Ordering::Relaxed).to_string();
        let json = self.json.lock().unwrap().clone();
        match json {
            Some(json) => Ok(SecretValue { json, version }),
            // Throttled, or denied.
            None => Err(Sites::from_json("").unwrap_err()),
        }
    }
}

fn list(sites: &[&str]) -> (String, Vec<NewKeys>) {
    let folder = std::env::temp_dir().join(format!("authorizer-{:?}", std::thread::current().id()));
    let path = folder.join("sites.json");
    let _ = std::fs::remove_dir_all(&folder);
    let origins = ["https://shop.example".to_owned()];
    let add = |site: &&str| tallymark_collector::sites::file::add(&path, site, &origins, false, |_| Ok(())).unwrap();
    let keys = sites.iter().map(add).collect();
    let json = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    (json, keys)
}

fn request(header: &str) -> Value {
    json!({"version": "2.0", "type": "REQUEST", "identitySource": [header], "headers": {"authorization": header}})
}

fn basic(username: &str, key: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{key}")))
}

async fn answer<S: SecretSource>(secret: &Arc<SitesSecret<S>>, request: &Value) -> Value {
    serde_json::to_value(authorize(secret, request).await.unwrap()).unwrap()
}

#[tokio::test]
async fn a_good_key_is_named_by_site_and_scope_and_anything_else_is_a_plain_no() {
    let (json, keys) = list(&["shop"]);
    let fake = Fake::default();
    fake.set(Some(json));
    let secret = SitesSecret::new(fake, Sites::default(), LIFETIME);
    let allowed = |scope| json!({"isAuthorized": true, "context": {"username": "shop", "scope": scope}});
    assert_eq!(answer(&secret, &request(&basic("shop", &keys[0].secret_key))).await, allowed("secret"));
    assert_eq!(answer(&secret, &request(&basic("shop", &keys[0].write_key))).await, allowed("write"));
    let good = basic("shop", &keys[0].secret_key);
    let bad = [
        request(&basic("shop", "tms_wrong")),
        request(&basic("nobody", &keys[0].secret_key)),
        request(&basic("", "")),
        request(""),
        request("Basic"),
        request("Basic !!!"),
        request("Bearer c2hvcDprZXk="),
        request(&format!("Basic {}", STANDARD.encode("no colon"))),
        request(&format!("Basic {}", STANDARD.encode([0xff, b':', 0xfe]))),
        // Two headers, as a gateway joins them.
        request(&format!("{good},{good}")),
        // Not what API Gateway sends, but no reason to fail either.
        json!({"identitySource": [good, good]}),
        json!({"identitySource": []}),
        json!({"identitySource": null, "headers": {"authorization": good}}),
        json!({"identitySource": good}),
        json!({"identitySource": [7]}),
        json!({"headers": {"authorization": good}}),
        json!({}),
        json!([]),
        json!(null),
        json!("warm up"),
    ];
    for request in bad {
        assert_eq!(answer(&secret, &request).await, json!({"isAuthorized": false}), "{request}");
    }
}

#[tokio::test]
async fn a_new_key_works_at_once_and_wrong_ones_cannot_make_it_read_more_often() {
    let (json, _) = list(&["shop"]);
    let fake = Fake::default();
    fake.set(Some(json));
    let secret = SitesSecret::new(fake.clone(), Sites::default(), LIFETIME);
    let wrong = request(&basic("shop", "tms_wrong"));
    for _ in 0..20 {
        assert_eq!(answer(&secret, &wrong).await["isAuthorized"], false);
    }
    assert_eq!(fake.reads(), 1, "once at the start, which is less than the pause ago");

    // In another environment, which has not read it of late.
    let secret = SitesSecret::new(fake.clone(), Sites::default(), LIFETIME);
    let (json, keys) = list(&["shop", "new"]);
    fake.set(Some(json));
    let new = request(&basic("new", &keys[1].write_key));
    assert_eq!(answer(&secret, &new).await["context"]["username"], "new");
}

#[tokio::test]
async fn when_the_secret_cannot_be_read_the_last_list_stays_and_without_one_clients_are_to_retry() {
    let (json, keys) = list(&["shop"]);
    let good = request(&basic("shop", &keys[0].secret_key));
    let fake = Fake::default();
    let never = SitesSecret::new(fake.clone(), Sites::default(), LIFETIME);
    assert_eq!(authorize(&never, &good).await, Err(NoSites), "a 500, which clients retry");
    assert_eq!(answer(&never, &request("Basic !!!")).await, json!({"isAuthorized": false}));

    // Its list is always too old.
    let secret = SitesSecret::new(fake.clone(), Sites::default(), Duration::ZERO);
    fake.set(Some(json));
    secret.load().await.unwrap();
    for broken in [None, Some(String::new()), Some("{}".into()), Some(r#"{"sites":[{}]}"#.into())] {
        fake.set(broken);
        secret.load().await.unwrap_err();
        assert_eq!(answer(&secret, &good).await["isAuthorized"], true);
    }
}

//! `GET /docs`: the OpenAPI document as a page. It is rendered here, so that it needs no script and no other host.

use crate::http::openapi::document;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::LazyLock;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fff}h2{margin-top:2.5rem;border-top:1px solid #ccc;padding-top:1rem}\
code,pre{font:14px/1.5 ui-monospace,monospace}pre{background:#f4f4f4;padding:1rem;overflow:auto}\
table{border-collapse:collapse}td,th{text-align:left;vertical-align:top;padding:.25rem 1rem .25rem 0}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#262626}a{color:#8bf}}";

static PAGE: LazyLock<String> = LazyLock::new(page);
/// Allows this one style, and no scripts, other hosts or frames.
static POLICY: LazyLock<HeaderValue> = LazyLock::new(|| {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&policy).unwrap_or(HeaderValue::from_static("default-src 'none'"))
});

pub(crate) async fn answer() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY.clone())], Html(PAGE.as_str()))
}

fn page() -> String {
    let document = document();
    let info = &document["info"];
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style></head><body><h1>{title} \
         {}</h1><p>{}</p><p>For programs: <a href=\"openapi.json\">OpenAPI 3.1</a>.</p>",
        words(&info["version"]),
        words(&info["description"]),
        title = words(&info["title"])
    );
    for (path, methods) in members(&document["paths"]) {
        for (method, operation) in members(methods) {
            show_operation(&mut page, method, path, operation);
        }
    }
    page.push_str("<h2>Schemas</h2>");
    for (name, schema) in members(&document["components"]["schemas"]) {
        let json = serde_json::to_string_pretty(schema).unwrap_or_default();
        let _ = write!(page, "<h3 id=\"{0}\">{0}</h3><pre>{1}</pre>", escaped(name), escaped(&json));
    }
    page.push_str("</body></html>");
    page
}

fn show_operation(page: &mut String, method: &str, path: &str, operation: &Value) {
    let method = method.to_ascii_uppercase();
    let _ = write!(page, "<h2><code>{} {}</code></h2>", escaped(&method), escaped(path));
    let key = if operation.get("security").is_some() { " Requires a key." } else { "" };
    let _ = write!(page, "<p>{}.{key} {}</p><table>", words(&operation["summary"]), words(&operation["description"]));
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let needed = if parameter["required"] == true { " (required)" } else { "" };
        let (name, what) = (words(&parameter["name"]), words(&parameter["description"]));
        let schema = escaped(&parameter["schema"].to_string());
        let _ = write!(page, "<tr><td><code>{name}</code>{needed}</td><td>{what} <code>{schema}</code></td></tr>");
    }
    if let Some(content) = operation["requestBody"].get("content") {
        let _ = write!(page, "<tr><td>body</td><td>{}</td></tr>", schemas(content));
    }
    for (status, response) in members(&operation["responses"]) {
        let (what, content) = (words(&response["description"]), schemas(&response["content"]));
        let _ = write!(page, "<tr><td>{}</td><td>{what} {content}</td></tr>", escaped(status));
    }
    page.push_str("</table>");
}

/// Links to the schemas of a body, by its types.
fn schemas(content: &Value) -> String {
    let mut text = String::new();
    for (kind, body) in members(content) {
        let schema = &body["schema"];
        let reference = schema.get("$ref").or_else(|| schema.get("allOf")?.get(0)?.get("$ref"));
        let name = reference.and_then(|reference| reference.as_str()?.rsplit('/').next());
        let _ = write!(text, "<code>{}</code> ", escaped(kind));
        if let Some(name) = name.map(escaped) {
            let _ = write!(text, "<a href=\"#{name}\">{name}</a> ");
        }
    }
    text
}

fn members(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

/// Text as HTML, with code between backticks.
fn words(text: &Value) -> String {
    let text = escaped(text.as_str().unwrap_or_default());
    let mut parts = text.split('`');
    let mut words = parts.next().unwrap_or_default().to_owned();
    for (part, is_code) in parts.zip([true, false].into_iter().cycle()) {
        let _ = if is_code { write!(words, "<code>{part}</code>") } else { write!(words, "{part}") };
    }
    words
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

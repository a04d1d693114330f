//! The routes that read counters: the counts of one page or button, totals and series, and the most frequent keys.

use crate::http::app::{App, Shared};
use crate::http::auth::Reader;
use crate::http::problem::{INVALID_QUERY, Problem};
use crate::ingest::checked_batch::LOST;
use crate::store::query::{DAY, HOUR, Hours, Query, SERIES_POINTS, TOP_KEYS};
use axum::Json;
use axum::extract::{RawQuery, State};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Unexpected};
use serde_json::{Value, json};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UrlQuery {
    url: String,
}

pub(crate) async fn page_view_count(
    State(app): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let UrlQuery { url } = query(raw)?;
    count_of(&app, &site.username, "page_view", url).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ButtonQuery {
    button_id: String,
}

pub(crate) async fn button_click_count(
    State(app): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let ButtonQuery { button_id } = query(raw)?;
    count_of(&app, &site.username, "button_click", button_id).await
}

async fn count_of(app: &App, username: &str, event_type: &str, key: String) -> Result<Json<Value>, Problem> {
    if key.is_empty() {
        // To the store, an empty key is the total of the type, which is not what was asked.
        return Ok(Json(json!({"count": 0})));
    }
    let query = Query { username: username.into(), event_type: event_type.into(), counter_key: key };
    Ok(Json(json!({"count": app.collector.store.count(query, None).await?})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CountsQuery {
    event_type: String,
    key: Option<String>,
    from: Option<Time>,
    to: Option<Time>,
    interval: Option<Interval>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Interval {
    Hour,
    Day,
}

pub(crate) async fn counts(
    State(app): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let asked: CountsQuery = query(raw)?;
    check_event_type(&asked.event_type)?;
    let query = Query {
        username: site.username.clone(),
        event_type: asked.event_type.clone(),
        counter_key: asked.key.clone().unwrap_or_default(),
    };
    let mut answer = json!({"event_type": asked.event_type});
    if let Some(key) = &asked.key {
        answer["key"] = key.as_str().into();
    }
    let (from, to) = (asked.from.map(|from| from.0), asked.to.map(|to| to.0));
    let Some(interval) = asked.interval else {
        let hours = match (from, to) {
            (None, None) => None,
            (from, to) => Some(whole_hours(from.unwrap_or(0), to.unwrap_or_else(crate::time::now), HOUR)?),
        };
        answer["total"] = app.collector.store.count(query, hours).await?.into();
        return Ok(Json(answer));
    };
    let (step, span) = match interval {
        Interval::Hour => (HOUR, DAY),
        Interval::Day => (DAY, 30 * DAY),
    };
    let to = to.unwrap_or_else(crate::time::now);
    let hours = whole_hours(from.unwrap_or_else(|| to.saturating_sub(span)), to, step)?;
    let steps = (hours.end - hours.start) / (step / HOUR);
    if steps > SERIES_POINTS {
        return Err(invalid_query(format!("The series would have {steps} points, and may have {SERIES_POINTS}.")));
    }
    let first = hours.start / (step / HOUR);
    let mut points = vec![0; steps as usize];
    for (hour, count) in app.collector.store.series(query, hours).await? {
        points[(hour / (step / HOUR) - first) as usize] += count;
    }
    answer["total"] = points.iter().sum::<u64>().into();
    answer["series"] = (0..)
        .zip(points)
        .map(|(at, count): (u64, u64)| json!({"start": (first + at) * step, "count": count}))
        .collect();
    Ok(Json(answer))
}

/// A time in a query, in milliseconds since the Unix epoch.
#[derive(Clone, Copy)]
struct Time(u64);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let expected = "milliseconds since the Unix epoch, a date or an RFC 3339 time";
        time(&text).ok_or_else(|| D::Error::invalid_value(Unexpected::Str(&text), &expected))
    }
}

/// A time as people and programs write it: `1793491200000`, `2026-11-01` (in UTC) or `2026-11-01T00:00:00+01:00`.
fn time(text: &str) -> Option<Time> {
    if let Ok(milliseconds) = text.parse() {
        return Some(Time(milliseconds));
    }
    let is_date = text.len() == "2026-11-01".len();
    // In a query, an unescaped `+` is a space.
    let text = if is_date { format!("{text}T00:00:00Z") } else { text.replace(' ', "+") };
    text.parse::<Timestamp>().ok()?.as_millisecond().try_into().ok().map(Time)
}

/// The hours of the steps from `from` to `to`, both rounded outwards to whole steps.
fn whole_hours(from: u64, to: u64, step: u64) -> Result<Hours, Problem> {
    if from >= to || to > i64::MAX as u64 {
        return Err(invalid_query(format!(
            "`from` must be before `to`, got {from} and {to} in milliseconds since the Unix epoch."
        )));
    }
    let hours = step / HOUR;
    Ok(from / step * hours..to.div_ceil(step) * hours)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TopQuery {
    event_type: String,
    #[serde(default = "default_top")]
    limit: u32,
}

fn default_top() -> u32 {
    10
}

pub(crate) async fn top(
    State(app): Shared,
    Reader { site }: Reader,
    RawQuery(raw): RawQuery,
) -> Result<Json<Value>, Problem> {
    let TopQuery { event_type, limit } = query(raw)?;
    check_event_type(&event_type)?;
    if !(1..=TOP_KEYS).contains(&limit) {
        return Err(invalid_query(format!("`limit` must be from 1 to {TOP_KEYS}.")));
    }
    let query = Query { username: site.username.clone(), event_type: event_type.clone(), counter_key: String::new() };
    let top = app.collector.store.top(query, limit).await?;
    let top: Vec<_> = top.into_iter().map(|(key, count)| json!({"key": key, "count": count})).collect();
    Ok(Json(json!({"event_type": event_type, "top": top})))
}

fn check_event_type(event_type: &str) -> Result<(), Problem> {
    match event_type {
        "page_view" | "button_click" | "custom" | LOST => Ok(()),
        _ => Err(invalid_query("`event_type` must be page_view, button_click, custom or lost.")),
    }
}

/// Parsed only after the key has been checked, so that a caller without a key learns nothing. Unknown parameters are
/// refused: with a misspelt `from`, the count would silently be the wrong one.
fn query<T: DeserializeOwned>(raw: Option<String>) -> Result<T, Problem> {
    let uri = format!("/?{}", raw.unwrap_or_default());
    let uri = uri.parse().map_err(|_| invalid_query("The query string is not a valid part of a URL."))?;
    axum::extract::Query::try_from_uri(&uri).map(|axum::extract::Query(query)| query).map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        invalid_query(cause.unwrap_or_else(|| error.to_string()))
    })
}

fn invalid_query(detail: impl Into<String>) -> Problem {
    Problem::new(&INVALID_QUERY, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_milliseconds_a_date_or_rfc_3339() {
        let read = |text: &str| time(text).map(|time| time.0);
        for text in ["1793491200000", "2026-11-01", "2026-11-01T00:00:00Z", "2026-11-01T01:00:00+01:00"] {
            assert_eq!(read(text), Some(1_793_491_200_000), "{text}");
        }
        assert_eq!(read("2026-11-01T01:00:00 01:00"), Some(1_793_491_200_000), "`+` as it arrives");
        assert_eq!(read("2026-11-01T00:00:00.5Z"), Some(1_793_491_200_500));
        for text in
            ["", "yesterday", "-1", "1.5", "2026-13-01", "2026-11-1", "2026-11-01T00:00:00", "1969-01-01", "1e9"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

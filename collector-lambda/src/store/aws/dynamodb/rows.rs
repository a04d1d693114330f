//! Reads the counters of a shard, page by page.

use crate::Error;
use crate::store::aws::dynamodb::keys::{Item, n};
use crate::store::aws::dynamodb::table::DynamoDb;
use crate::store::aws::{self, Backoff};
use aws_sdk_dynamodb::types::AttributeValue;
use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;
use tokio::task::JoinSet;

/// Counters of one shard, in the order of their sort keys.
pub(super) struct Rows {
    table: DynamoDb,
    pk: String,
    first: String,
    last: String,
    /// What has been read and not been taken.
    pub(super) page: VecDeque<Row>,
    next: Next,
}

pub(super) struct Row {
    pub(super) sk: String,
    /// Of a total.
    pub(super) n: u64,
    /// Of a day, by its hours.
    pub(super) hours: Vec<(u64, u64)>,
    pub(super) key: Option<String>,
}

/// Where reading goes on.
enum Next {
    Start,
    After(Item),
    End,
}

impl Rows {
    pub(super) fn new(table: DynamoDb, pk: String, first: &str, last: &str) -> Self {
        Self { table, pk, first: first.into(), last: last.into(), page: VecDeque::new(), next: Next::Start }
    }

    /// Reads on until there is a row to take, or none is left.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        while self.page.is_empty() {
            let after = match std::mem::replace(&mut self.next, Next::End) {
                Next::Start => None,
                Next::After(key) => Some(key),
                Next::End => break,
            };
            let table = &self.table;
            let call = table
                .client
                .query()
                .table_name(&table.table)
                .consistent_read(true)
                .key_condition_expression("pk = :pk AND sk BETWEEN :first AND :last")
                .expression_attribute_values(":pk", AttributeValue::S(self.pk.clone()))
                .expression_attribute_values(":first", AttributeValue::S(self.first.clone()))
                .expression_attribute_values(":last", AttributeValue::S(self.last.clone()))
                .set_exclusive_start_key(after);
            let answer = aws::repeat(&mut Backoff::new(), || call.clone().send())
                .await
                .map_err(|error| table.unavailable(error))?;
            self.page.extend(answer.items.into_iter().flatten().filter_map(Row::read));
            self.next = answer.last_evaluated_key.map_or(Next::End, Next::After);
        }
        Ok(())
    }

    pub(super) async fn filled(mut self) -> Result<Self, Error> {
        self.fill().await?;
        Ok(self)
    }

    pub(super) async fn all(mut self) -> Result<Vec<Row>, Error> {
        let mut all = Vec::new();
        loop {
            self.fill().await?;
            if self.page.is_empty() {
                return Ok(all);
            }
            all.extend(self.page.drain(..));
        }
    }
}

impl Row {
    fn read(mut item: Item) -> Option<Self> {
        let n = n(&item);
        let hour = |(name, value): (&String, &AttributeValue)| {
            Some((name.strip_prefix('h')?.parse().ok()?, value.as_n().ok()?.parse().ok()?))
        };
        let hours = item.iter().filter_map(hour).collect();
        let mut text = |name| match item.remove(name) {
            Some(AttributeValue::S(text)) => Some(text),
            _ => None,
        };
        Some(Self { sk: text("sk")?, n, hours, key: text("key") })
    }
}

/// Does several things concurrently, and fails with the first that fails.
pub(super) async fn at_once<T, F>(work: impl Iterator<Item = F>) -> Result<Vec<T>, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let mut work: JoinSet<_> = work.collect();
    let mut done = Vec::new();
    while let Some(result) = work.join_next().await {
        let cut_off =
            |error| Error::unavailable("The counters cannot be read", Duration::from_secs(1)).with_source(error);
        done.push(result.map_err(cut_off)??);
    }
    Ok(done)
}

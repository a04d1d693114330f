//! Over how many shards the counters of a type are spread, and how that grows.

use crate::Error;
use crate::store::aws::dynamodb::keys::{Item, number, shards_key};
use crate::store::aws::dynamodb::table::DynamoDb;
use crate::store::aws::{self, Backoff};
use crate::store::query::Query;
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;
use std::sync::PoisonError;

/// The most shards of a type. One read of a counter gets as many items, and a call may get 100.
const MOST_SHARDS: u64 = 64;

impl DynamoDb {
    /// Over how many shards the counters of a type are spread, now.
    pub(super) async fn shards(&self, query: &Query, backoff: &mut Backoff) -> Result<u64, Error> {
        let call = self.client.get_item().table_name(&self.table).consistent_read(true);
        let call = call.set_key(Some(shards_key(&query.username, &query.event_type)));
        let answer = aws::repeat(backoff, || call.clone().send()).await.map_err(|error| self.unavailable(error))?;
        Ok(answer.item.as_ref().map_or(1, shards_of))
    }

    /// The same, as far as it is known here. There may be more by now.
    pub(super) fn known_shards(&self, username: &str, event_type: &str) -> u64 {
        let known = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&(username.into(), event_type.into())).copied().unwrap_or(1)
    }

    /// Spreads the counters of a type over more shards than these, unless that has been done.
    pub(super) async fn split(&self, username: &str, event_type: &str, shards: u64) {
        let more = (shards * 2).min(MOST_SHARDS);
        if self.known_shards(username, event_type) >= more {
            return;
        }
        let call = self.client.update_item().table_name(&self.table).set_key(Some(shards_key(username, event_type)));
        let call = call.update_expression("SET shards = :more").expression_attribute_values(":more", number(more));
        let call = call.condition_expression("attribute_not_exists(shards) OR shards < :more");
        let call = call.return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        let shards = match call.send().await.map_err(SdkError::into_service_error) {
            Ok(_) => {
                tracing::info!(username, event_type, shards = more, "counters are spread over more shards");
                more
            }
            Err(UpdateItemError::ConditionalCheckFailedException(error)) => error.item().map_or(more, shards_of),
            // It was only to make the next attempt easier.
            Err(error) => {
                tracing::warn!(cause = %crate::error::chain(&error), "cannot spread counters over more shards");
                return;
            }
        };
        let mut known = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((username.into(), event_type.into()), shards);
    }
}

fn shards_of(item: &Item) -> u64 {
    let shards = item.get("shards").and_then(|shards| shards.as_n().ok()?.parse().ok());
    shards.unwrap_or(1).clamp(1, MOST_SHARDS)
}

//! The AWS Lambda functions around the Tallymark collector.
//!
//! | function | between | what it does |
//! |---|---|---|
//! | [`authorizer`] | HTTP API and collector | tells the API whose key a request carries |
//! | [`transform`] | Firehose and the lake | checks, normalises and filters events |
//!
//! Each is a library that is tested without AWS, and a program of a few lines that runs it. `../deploy/template.yaml`
//! puts them together.

#[cfg(feature = "authorizer")]
pub mod authorizer;
pub mod function;
#[cfg(feature = "transform")]
pub mod transform;

//! The collector as an AWS Lambda function behind an HTTP API, a REST API, a Function URL or a load
//! balancer.

fn main() {}

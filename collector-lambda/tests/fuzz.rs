//! What fuzzing has found worth keeping still holds. The targets themselves are run by `make fuzz`.
#![cfg(feature = "server")]

#[path = "../fuzz/invariants.rs"]
mod invariants;

/// Whatever is in the target's corpus, and a part of it cut off, which is another input.
fn replay(target: &str, holds: fn(&[u8])) {
    let folder = format!("{}/fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut inputs = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let input = std::fs::read(entry.unwrap().path()).unwrap();
        holds(&input);
        holds(&input[..input.len() / 2]);
        inputs += 1;
    }
    assert!(inputs > 5, "{inputs}");
}

#[test]
fn a_body_is_bounded_and_the_same_in_every_encoding() {
    replay("body", invariants::body);
}

#[test]
fn an_event_is_stored_as_it_was_sent() {
    replay("event", invariants::event);
}

#[test]
fn credentials_can_be_written_in_one_way() {
    replay("authorization", invariants::authorization);
}

#[test]
fn whatever_is_answered_every_event_is_accounted_for() {
    replay("answers", invariants::answers);
}

#[test]
fn what_is_left_in_a_spool_is_taken_over_or_kept() {
    replay("segment", invariants::segment);
}

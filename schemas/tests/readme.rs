//! What the README says of the contract is what the code says.

use coderelay_schemas::{cql, dlq, headers, topics};

const README: &str = include_str!("../../README.md");

#[test]
fn the_readme_shows_the_topics_as_they_are() {
    assert!(README.contains(&topics::markdown()), "README.md should contain:\n{}", topics::markdown());
}

#[test]
fn the_readme_names_every_header_column_and_reason() {
    let reasons = dlq::DlqReason::ALL.map(dlq::DlqReason::as_str);
    let headers = [headers::PACKET_ID, headers::TRACEPARENT, headers::REGION, headers::CONTENT_TYPE, headers::SCHEMA];
    for name in reasons.iter().chain(&headers).chain(&dlq::HEADERS).chain(&cql::COLUMNS) {
        assert!(README.contains(name), "README.md does not mention {name}");
    }
}

//! The headers of a record as any client may have written it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rdkafka::message::{BorrowedHeaders, Header, Headers as _};

/// The headers of a record in their order, `None` for one whose name is not UTF-8. Any client may write such a one, no broker looks at it,
/// and rust-rdkafka panics at it.
pub fn headers(borrowed: &BorrowedHeaders) -> impl Iterator<Item = Option<Header<'_, &[u8]>>> {
    (0..borrowed.count())
        .map(|index| catch_unwind(AssertUnwindSafe(|| borrowed.try_get(index))))
        .map_while(|read| read.map_or(Some(None), |header| header.map(Some)))
}

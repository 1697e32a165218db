//! Takes packets over gRPC and writes them to Kafka.
//!
//! ```text
//! server ─▶ listener ─▶ service ─▶ ack ─▶ stream ─▶ frames ─▶ intake ─▶ wire ─▶ admission ─▶ validate ─▶ producer ─▶ reply ─▶ outcome ─▶ response
//!                                                                      x-ack: mirrored  └─▶ confirmations ◀─ mirror ◀─ follower
//! ```
//!
//! A client's message is charged to the budget ([`admission`]) before it is read ([`frames`]), taken apart into packets
//! ([`wire`]), and each packet is checked ([`validate`]) and handed to the Kafka client ([`producer`]). The delivery report of
//! a packet gives its share of the budget back and settles its [`outcome`]; the last one of a request sends the [`reply`], which
//! counts against a budget of its own ([`unread`]) until its client has read the [`response`].
//! Where the call says `x-ack: mirrored` ([`ack`]) the packet waits, after its report, until the other region has it too ([`mirror`]).
//!
//! # What clients are told
//! Every packet has one result, and every error an `ErrorInfo.reason`. Those of a single packet:
//!
//! | code | reason | what to do |
//! |---|---|---|
//! | `INVALID_ARGUMENT` | the broken rule, such as `CONTENT_CORRUPT` or `REPO_ID_EMPTY`; `RECORD_TOO_LARGE` | drop or mend it |
//! | `RESOURCE_EXHAUSTED` | `ADMISSION_EXHAUSTED`, `QUEUE_FULL`, `MIRROR_BEHIND` | the same again after `RetryInfo` |
//! | `UNAVAILABLE` | `KAFKA_UNAVAILABLE`, `DRAINING` | the same again after `RetryInfo`, with the same id: it may have been written |
//! | `UNAVAILABLE` | `MIRROR_UNCONFIRMED`: it is durable here, and not known to be in the other region | the same again, with the same id |
//! | `INTERNAL` | `KAFKA_REFUSED`, `INTERNAL` | tell the operator |
//!
//! Those that end a whole call; on a stream, what was taken before is answered first:
//!
//! | code | reason | when |
//! |---|---|---|
//! | `OUT_OF_RANGE` | `REQUEST_TOO_LARGE` | a message over `grpc.max_message_size` |
//! | `INVALID_ARGUMENT` | `REQUEST_TOO_MANY_PACKETS`, `REQUEST_MALFORMED`, `REQUEST_TRUNCATED`, `REQUEST_MISSING` | a message that is no request |
//! | `DEADLINE_EXCEEDED` | `STREAM_IDLE`, `REQUEST_TOO_SLOW` | silence, or answers left unread, for `grpc.stream_idle_timeout`; a message slower than `grpc.message_timeout` |
//! | `RESOURCE_EXHAUSTED` | `TOO_MANY_CALLS` | more calls than `grpc.max_streams`; with `RetryInfo` |
//! | `RESOURCE_EXHAUSTED` | `ANSWERS_UNREAD` | too many results wait for their clients to read them; with `RetryInfo` |
//! | `UNAVAILABLE` | `DRAINING`, `CONNECTION_AGE` | connect again; with `RetryInfo` |
//! | `INVALID_ARGUMENT`, `FAILED_PRECONDITION` | `ACK_UNKNOWN`, `MIRROR_NOT_CONFIGURED` | an `x-ack` that does not exist, or `mirrored` without `[mirror]` |
//! | `UNIMPLEMENTED` | `ENCODING_UNSUPPORTED` | a `grpc-encoding` other than `identity` and `gzip` |
//!
//! A request without packets is answered without results. `seq` is the client's own: it may repeat or jump, and is handed back as
//! it came. A client that does not read its answers is no longer read either once `grpc.max_unanswered` requests wait, and loses
//! its connection when others need the room; one that cancels or vanishes loses its answers, not its packets.

pub mod server;
pub mod listener;
pub mod service;
pub mod ack;
pub mod stream;
pub mod frames;
pub mod intake;
pub mod wire;
pub mod admission;
pub mod validate;
pub mod producer;
pub mod confirmations;
pub mod mirror;
pub mod follower;
pub mod reply;
pub mod peer;
pub mod unread;
pub mod outcome;
pub mod response;
pub mod config;
pub mod metrics;
pub mod monitor;
pub mod trace;

pub use server::run;

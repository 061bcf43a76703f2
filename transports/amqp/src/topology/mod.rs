//! The broker's exchanges and queues: how they are declared, compared and looked up.

pub(crate) mod declare_connection;
mod entities;
pub(crate) mod journal_ready;

pub use entities::{JOURNAL_MAX_AGE, JOURNAL_MAX_BYTES};
pub(crate) use entities::{
    DEAD, EVENTS, EVENTS_QUEUE, FACTS, JOURNAL, RESULTS, Seen, Thing, WORK, exchange_of, number, open_journal,
    open_lane, open_shards, table, text,
};

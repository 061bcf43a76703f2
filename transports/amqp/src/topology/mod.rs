//! The exchanges and queues on the broker: declared, compared and looked up.

mod declare_connection;
mod entities;
mod journal_ready;

pub use self::entities::{JOURNAL_MAX_AGE, JOURNAL_MAX_BYTES};
pub(crate) use self::{
    declare_connection::DeclareSession,
    entities::{
        BrokerEntity, DEAD_EXCHANGE, EVENTS_EXCHANGE, EVENTS_QUEUE_PREFIX, Existence, FACTS_EXCHANGE,
        JOURNAL_QUEUE, RESULTS_EXCHANGE, WORK_EXCHANGE, exchange_for, number, open_lane, open_shards, table,
        text,
    },
    journal_ready::repair_hint,
};

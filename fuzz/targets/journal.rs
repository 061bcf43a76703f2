//! Every fact of the journal, by the first byte of the input.

#![no_main]

use gristmill_shared::{
    Message,
    wire::{Fact, Finished, Missing, Opened, Refused, Reopened, Serving, Stopped, WireMessage as _},
};
use libfuzzer_sys::fuzz_target;

const TYPES: [&str; 7] = [
    Opened::TYPE,
    Finished::TYPE,
    Stopped::TYPE,
    Reopened::TYPE,
    Missing::TYPE,
    Refused::TYPE,
    Serving::TYPE,
];

fuzz_target!(|input: (u8, &[u8])| {
    let form = TYPES[usize::from(input.0) % TYPES.len()].to_owned();
    let message = Message { form, body: input.1.to_vec().into(), ..Message::default() };
    let _ = Fact::decode(&message);
});

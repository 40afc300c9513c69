//! Small guest hypervisors on the whole stack. Each test is one sentence of the manual: an L1, assembled here, sets
//! it up, and reports what it saw.

mod code;
mod entry;
mod events;
mod exits;
mod hostile;
mod image;
mod instructions;
mod l1;
mod memory;
mod place;
mod profiles;
mod state;

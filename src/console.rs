//! The guest's serial line on this process's terminal: keys in, bytes out, and what ends a run from outside.

pub mod escape;
pub mod screen;
pub mod signals;
pub mod terminal;
pub mod typed;

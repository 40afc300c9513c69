//! Exit statuses of the command.
//!
//! They are even where Testudo chooses them: the guest's own, by the debug-exit port, are odd, as QEMU has them.

use crate::config::{End, StopReason};

/// The guest switched the machine off; for the ready-made guest: after L2 had reached its userspace.
pub const DONE: u8 = 0;
/// Wrong options, a bad file, or something that the host refused.
pub const ERROR: u8 = 2;
/// The guest reset the machine.
pub const RESET: u8 = 4;
/// A triple fault.
pub const TRIPLE_FAULT: u8 = 6;
/// Every CPU waits for what cannot come.
pub const HALTED: u8 = 8;
/// A VMX abort.
pub const VMX_ABORT: u8 = 10;
/// The ready-made guest gave up before its end.
pub const GUEST_FAILED: u8 = 12;
/// An invariant of Testudo's own was broken.
pub const BROKEN: u8 = 70;
/// `--timeout` has passed; as timeout(1) has it.
pub const TIMEOUT: u8 = 124;
/// The user ended the run; as a shell reports SIGINT.
pub const INTERRUPTED: u8 = 130;
/// To this a signal's number is added.
const SIGNAL: u8 = 128;

/// All statuses, for the help and the documentation.
#[rustfmt::skip]
pub const MEANINGS: &[(&str, &str)] = &[
    ("0",    "the guest switched the machine off (the ready-made guest: after L2 had reached its userspace)"),
    ("2",    "wrong options, a bad file, or something that the host refused"),
    ("4",    "the guest reset the machine; there is no second boot"),
    ("6",    "a triple fault shut the guest down"),
    ("8",    "every CPU halted with nothing left to wake it"),
    ("10",   "a VMX abort in L1"),
    ("12",   "the ready-made guest gave up before its end; its console says why"),
    ("70",   "an invariant of Testudo's own was broken: please report it"),
    ("124",  "--timeout passed"),
    ("130",  "ended by Ctrl-A X or Ctrl-C"),
    ("128+N", "ended by signal N"),
    ("odd",  "2N+1 where the guest wrote N to the debug-exit port, 0xF4"),
];

impl End {
    /// The command's exit status.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::PowerOff => DONE,
            Self::Reset => RESET,
            Self::DebugExit(value) => (value << 1 | 1) as u8,
            Self::TripleFault => TRIPLE_FAULT,
            Self::Halted => HALTED,
            Self::VmxAbort(_) => VMX_ABORT,
            Self::Broken(_) => BROKEN,
            Self::Stopped(reason) => reason.status(),
        }
    }

    /// The end's name in the JSON of `--stats`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::PowerOff => "power_off",
            Self::Reset => "reset",
            Self::DebugExit(_) => "debug_exit",
            Self::TripleFault => "triple_fault",
            Self::Halted => "halted",
            Self::VmxAbort(_) => "vmx_abort",
            Self::Broken(_) => "broken",
            Self::Stopped(StopReason::User) => "user",
            Self::Stopped(StopReason::Signal(_)) => "signal",
            Self::Stopped(StopReason::Timeout) => "timeout",
        }
    }
}

impl StopReason {
    /// The command's exit status.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::User => INTERRUPTED,
            Self::Signal(number) => SIGNAL.saturating_add(u8::try_from(number).unwrap_or(0)),
            Self::Timeout => TIMEOUT,
        }
    }
}

impl std::fmt::Display for End {
    /// What happened, as the end of a sentence.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest switched the machine off"),
            Self::Reset => f.write_str("the guest reset the machine"),
            Self::DebugExit(value) => write!(f, "the guest wrote {value} to the debug-exit port"),
            Self::TripleFault => f.write_str("a triple fault shut the guest down"),
            Self::Halted => f.write_str("every CPU halted with nothing left to wake it"),
            Self::VmxAbort(indicator) => write!(f, "a VMX abort in L1, indicator {indicator}"),
            Self::Broken(what) => write!(f, "an invariant of Testudo's own was broken: {what}"),
            Self::Stopped(StopReason::User) => f.write_str("ended by the user"),
            Self::Stopped(StopReason::Signal(number)) => write!(f, "ended by signal {number}"),
            Self::Stopped(StopReason::Timeout) => f.write_str("--timeout passed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_status() {
        let ends = [
            (End::PowerOff, 0),
            (End::Reset, 4),
            (End::DebugExit(0), 1),
            (End::DebugExit(0x10), 0x21),
            (End::TripleFault, 6),
            (End::Halted, 8),
            (End::VmxAbort(1), 10),
            (End::Broken("x".into()), 70),
            (End::Stopped(StopReason::Timeout), 124),
            (End::Stopped(StopReason::User), 130),
            (End::Stopped(StopReason::Signal(15)), 143),
        ];
        for (end, status) in ends {
            assert_eq!(end.status(), status, "{end}");
        }
    }

    #[test]
    fn the_table_is_documented() {
        let guide = include_str!("../docs/run.md");
        for (status, meaning) in MEANINGS {
            assert!(
                guide.contains(&format!("| {status} | {meaning} |")),
                "{status} is missing in docs/run.md"
            );
        }
    }
}

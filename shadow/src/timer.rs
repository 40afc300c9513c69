//! L1's VMX-preemption timer, on the machine's: the two may count at different rates, and a halted L2 does not run
//! while its timer counts. SDM Vol. 3, "VMX-Preemption Timer", "Miscellaneous Data".

use crate::engine::Engine;
use vmcs12::caps::{Capabilities, VmxMisc};
use vmcs12::control::ACTIVATE_VMX_PREEMPTION_TIMER;
use vmcs12::field::{Vmcs, table::VMX_PREEMPTION_TIMER_VALUE};

/// What vmcs02's field does not say of the timer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Timer {
    /// Ticks that did not fit into the field.
    beyond: u64,
    /// L1's time-stamp counter, when the timer of an L2 that does not run was last looked at.
    inactive_since: Option<u64>,
}

/// The timer counts down by 1 for 2 to the power of this many ticks of the time-stamp counter.
fn rate(caps: &Capabilities) -> u8 {
    caps.misc.get(VmxMisc::PREEMPTION_TIMER_RATE)
}

/// Ticks at one rate, as ticks at another; never 0 for some.
fn converted(ticks: u64, from: u8, to: u8) -> u64 {
    let tsc = u128::from(ticks) << from;
    u64::try_from(tsc.div_ceil(1 << to)).unwrap_or(u64::MAX)
}

impl Engine {
    /// Starts the timer that vmcs12 asks for.
    pub(crate) fn start_timer(&mut self, vmcs12: &Vmcs) {
        self.timer = Timer::default();
        if vmcs12.has(ACTIVATE_VMX_PREEMPTION_TIMER) {
            let ticks = u64::from(vmcs12.get(VMX_PREEMPTION_TIMER_VALUE));
            self.set_ticks(converted(ticks, rate(&self.offered), rate(&self.machine)));
        }
    }

    /// The exit of the timer: does it only go on with what did not fit into the field?
    pub(crate) fn timer_goes_on(&mut self) -> bool {
        let beyond = self.timer.beyond;
        if beyond != 0 {
            self.set_ticks(beyond);
        }
        beyond != 0
    }

    /// Puts what is left of the timer into vmcs02's field as L1 counts it, to be saved.
    pub(crate) fn stop_timer(&mut self) {
        if self.counts() {
            let left = converted(self.ticks(), rate(&self.machine), rate(&self.offered));
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            self.vmcs02.current.set(VMX_PREEMPTION_TIMER_VALUE, left);
        }
        self.timer = Timer::default();
    }

    /// L2 does not run, and its timer counts.
    pub(crate) fn count_while_inactive(&mut self, tsc: u64) {
        if !self.counts() {
            return;
        }
        let since = self.timer.inactive_since.unwrap_or(tsc);
        let rate = rate(&self.machine);
        let passed = tsc.saturating_sub(since) >> rate;
        self.set_ticks(self.ticks().saturating_sub(passed));
        self.timer.inactive_since = Some(since + (passed << rate));
    }

    /// L2 runs, and the processor counts.
    pub(crate) fn count_while_active(&mut self) {
        self.timer.inactive_since = None;
    }

    /// The time of L1's at which the VMX-preemption timer wakes the halted L2, if it does.
    pub fn halted_until(&self) -> Option<u64> {
        let since = self.timer.inactive_since?;
        Some(since.saturating_add(converted(self.ticks(), rate(&self.machine), 0)))
    }

    fn counts(&self) -> bool {
        self.vmcs02.current.has(ACTIVATE_VMX_PREEMPTION_TIMER)
    }

    fn ticks(&self) -> u64 {
        u64::from(self.vmcs02.current.get(VMX_PREEMPTION_TIMER_VALUE)) + self.timer.beyond
    }

    fn set_ticks(&mut self, ticks: u64) {
        let now = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.timer.beyond = ticks - u64::from(now);
        self.vmcs02.current.set(VMX_PREEMPTION_TIMER_VALUE, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_converted_and_some_stay_some() {
        assert_eq!(converted(100, 7, 5), 400);
        assert_eq!(converted(400, 5, 7), 100);
        assert_eq!(converted(1, 5, 7), 1);
        assert_eq!(converted(0, 5, 7), 0);
        assert_eq!(converted(u64::from(u32::MAX), 31, 0), u64::from(u32::MAX) << 31);
    }
}

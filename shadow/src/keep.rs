//! Exits from L2, and what L0 does about those that it keeps.

use crate::engine::{Engine, Host, L2Exit, Msrs, Task};
use crate::ept::Filled;
use crate::reflect::Exit12;
use crate::route::{Owner, Question, owner};
use crate::{event, mode};
use vmcs12::addr::{Linear, Ngpa, Physical};
use vmcs12::arch::event::Exception;
use vmcs12::arch::state::Activity;
use vmcs12::control::ENABLE_EPT;
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::{ControlRegisterAccess, EptViolation};
use vmcs12::field::table::*;

impl Engine {
    /// L2 exited from vmcs02.
    pub fn on_l2_exit<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        reason: Reason,
    ) -> L2Exit {
        let Some(vmcs12) = host.vmcs01.linked.as_deref() else { return L2Exit::L0(Task::Emulate(reason)) };
        let question = Question {
            vmcs02: &self.vmcs02.current,
            vmcs12,
            state: host.state,
            memory: host.memory,
            ept01: self.ept.ept01(),
        };
        match owner(reason, &question) {
            Owner::L1 if reason == Reason::VmxPreemptionTimerExpired && self.timer_goes_on() => {
                self.kept(reason);
                L2Exit::Resumed
            }
            Owner::L1 => self.reflect(host, Exit12::recorded(reason)),
            Owner::L0 => self.keep(host, reason),
        }
    }

    fn keep<P: Physical, L: Linear, M: Msrs>(&mut self, host: &mut Host<P, L, M>, reason: Reason) -> L2Exit {
        if matches!(reason, Reason::EptViolation | Reason::EptMisconfiguration) {
            return self.on_ept_exit(host, reason);
        }
        self.kept(reason);
        match reason {
            // L0's own windows: what waits is taken before the next entry.
            Reason::InterruptWindow | Reason::NmiWindow => L2Exit::Resumed,
            Reason::Hlt => {
                let vmcs02 = &mut self.vmcs02.current;
                mode::skip_instruction(vmcs02);
                vmcs02.set(GUEST_ACTIVITY_STATE, Activity::Hlt as u32);
                L2Exit::L0(Task::Halt)
            }
            Reason::ControlRegisterAccess if self.sets_hidden_bits() => self.raise(host, Exception::gp(0)),
            _ => L2Exit::L0(Task::Emulate(reason)),
        }
    }

    /// L0 goes on with L2 as if the exit had not been.
    fn kept(&mut self, reason: Reason) {
        self.counters.kept.add(reason);
        event::reinject(&mut self.vmcs02.current, reason);
    }

    /// A MOV to CR4 that L1 does not want was stopped for bits that the profile lacks.
    fn sets_hidden_bits(&self) -> bool {
        let access = ControlRegisterAccess(self.vmcs02.current.get(EXIT_QUALIFICATION));
        access.get(ControlRegisterAccess::REGISTER) == 4
    }

    /// ept02 lacks the page, or ept12 forbids the access.
    fn on_ept_exit<P: Physical, L: Linear, M: Msrs>(
        &mut self,
        host: &mut Host<P, L, M>,
        reason: Reason,
    ) -> L2Exit {
        let vmcs12 = host.vmcs01.linked.as_deref().filter(|vmcs12| vmcs12.has(ENABLE_EPT));
        let Some(eptp12) = vmcs12.map(|vmcs12| vmcs12.get(EPTP)) else {
            // ept01 itself stopped the access: an address of L1's where there is no RAM.
            self.kept(reason);
            let at = self.vmcs02.current.get(GUEST_PHYSICAL_ADDRESS);
            return L2Exit::L0(Task::Mmio(vmcs12::addr::Gpa(at)));
        };
        let at = Ngpa(self.vmcs02.current.get(GUEST_PHYSICAL_ADDRESS));
        let stopped = EptViolation(self.vmcs02.current.get(EXIT_QUALIFICATION));
        match self.ept.fill(host.memory, eptp12, at, stopped, &mut self.invalidations) {
            Filled::Mapped => {
                self.counters.ept02_fills += 1;
                self.kept(reason);
                L2Exit::Resumed
            }
            Filled::Violation(qualification) => self.reflect(host, Exit12::ept_violation(qualification)),
            Filled::Misconfiguration => self.reflect(host, Exit12::ept_misconfiguration()),
            Filled::Hole(at) => {
                self.kept(reason);
                L2Exit::L0(Task::Mmio(at))
            }
        }
    }
}

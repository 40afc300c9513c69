//! IA32_APIC_BASE and the APIC's states. SDM Vol. 3, "Local APIC Status and Location", "x2APIC State Transitions".

use super::register::GeneralProtection;
use super::{DEFAULT_BASE, SIZE};

const BOOTSTRAP: u64 = 1 << 8;
const EXTENDED: u64 = 1 << 10;
const ENABLED: u64 = 1 << 11;

/// How software reaches the registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Not at all: there is no APIC.
    Disabled,
    /// By memory accesses.
    XApic,
    /// By MSRs.
    X2Apic,
}

/// IA32_APIC_BASE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ApicBase {
    value: u64,
    writable: u64,
}

/// Which processor it is after reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The one that boots.
    Bootstrap,
    /// One that waits for a start-up IPI.
    Application,
}

impl ApicBase {
    /// The value after reset of a processor with this physical-address width, with or without x2APIC mode.
    #[must_use]
    pub fn new(role: Role, physical_width: u32, x2apic: bool) -> Self {
        let address = (1u64 << physical_width.clamp(32, 52)) - SIZE;
        let extended = if x2apic { EXTENDED } else { 0 };
        Self {
            value: DEFAULT_BASE | ENABLED | if role == Role::Bootstrap { BOOTSTRAP } else { 0 },
            writable: address | BOOTSTRAP | ENABLED | extended,
        }
    }

    /// The MSR's value.
    #[must_use]
    pub fn value(self) -> u64 {
        self.value
    }

    /// The page of the registers.
    #[must_use]
    pub fn address(self) -> u64 {
        self.value & self.writable & !(SIZE - 1)
    }

    /// Is this the processor that booted?
    #[must_use]
    pub fn is_bootstrap(self) -> bool {
        self.value & BOOTSTRAP != 0
    }

    /// The state that the bits select.
    #[must_use]
    pub fn state(self) -> State {
        match (self.value & ENABLED != 0, self.value & EXTENDED != 0) {
            (false, _) => State::Disabled,
            (true, false) => State::XApic,
            (true, true) => State::X2Apic,
        }
    }

    /// The register after a write of `value`.
    ///
    /// # Errors
    /// #GP for a reserved bit, for EXTD without EN, and for the transitions disabled → x2APIC and x2APIC → xAPIC.
    pub fn transition(self, value: u64) -> Result<Self, GeneralProtection> {
        let new = Self { value, ..self };
        let reserved = value & !self.writable != 0;
        let invalid = value & (EXTENDED | ENABLED) == EXTENDED;
        let illegal = matches!(
            (self.state(), new.state()),
            (State::Disabled, State::X2Apic) | (State::X2Apic, State::XApic)
        );
        if reserved || invalid || illegal { Err(GeneralProtection) } else { Ok(new) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: u64 = DEFAULT_BASE | ENABLED;
    const X2: u64 = X | EXTENDED;
    const OFF: u64 = DEFAULT_BASE;

    fn in_state(value: u64) -> ApicBase {
        ApicBase { value, ..ApicBase::new(Role::Bootstrap, 39, true) }
    }

    #[test]
    fn the_transitions_of_the_manual() {
        for (from, to, allowed) in [
            (X, X2, true),
            (X, OFF, true),
            (X2, OFF, true),
            (OFF, X, true),
            (X, X, true),
            (X2, X2, true),
            (OFF, X2, false),
            (X2, X, false),
            (X, OFF | EXTENDED, false),
        ] {
            assert_eq!(in_state(from).transition(to).is_ok(), allowed, "{from:#x} to {to:#x}");
        }
    }

    #[test]
    fn reserved_bits_fault() {
        for bit in [0, 7, 9, 39, 51, 63] {
            assert!(in_state(X).transition(X | 1 << bit).is_err(), "bit {bit}");
        }
        assert!(ApicBase::new(Role::Bootstrap, 39, false).transition(X2).is_err());
    }
}

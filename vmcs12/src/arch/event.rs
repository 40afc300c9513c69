//! Events: vectors, exceptions, and the VMCS fields that inject and record them.
//! SDM Vol. 3, "Interrupt and Exception Handling"; "VM-Entry Controls for Event Injection"; "Information for VM Exits Due to Vectored Events".

use crate::bits;
use crate::bits::BitValue;

/// Exception vectors. SDM Vol. 3, "Exceptions and Interrupts".
#[allow(missing_docs, reason = "the manual's own names")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;
}

/// Does a hardware exception with this vector push an error code (protected mode)?
pub const fn pushes_error_code(v: u8) -> bool {
    matches!(
        v,
        vector::DF | vector::TS | vector::NP | vector::SS | vector::GP | vector::PF | vector::AC | vector::CP
    )
}

/// A hardware exception, before delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, if the exception has one.
    pub error_code: Option<u32>,
    /// #PF: the faulting linear address, for CR2 and the exit qualification. #DB: DR6 bits. Otherwise 0.
    pub address: u64,
}

impl Exception {
    /// #UD.
    pub const UD: Self = Self::plain(vector::UD);
    /// #NM.
    pub const NM: Self = Self::plain(vector::NM);
    /// #DE.
    pub const DE: Self = Self::plain(vector::DE);
    /// #MF.
    pub const MF: Self = Self::plain(vector::MF);
    /// #XM.
    pub const XM: Self = Self::plain(vector::XM);

    /// An exception without error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error_code: None, address: 0 }
    }
    /// #GP with an error code.
    pub const fn gp(code: u32) -> Self {
        Self { vector: vector::GP, error_code: Some(code), address: 0 }
    }
    /// #SS with an error code.
    pub const fn ss(code: u32) -> Self {
        Self { vector: vector::SS, error_code: Some(code), address: 0 }
    }
    /// #NP with an error code.
    pub const fn np(code: u32) -> Self {
        Self { vector: vector::NP, error_code: Some(code), address: 0 }
    }
    /// #TS with an error code.
    pub const fn ts(code: u32) -> Self {
        Self { vector: vector::TS, error_code: Some(code), address: 0 }
    }
    /// #AC(0).
    pub const fn ac() -> Self {
        Self { vector: vector::AC, error_code: Some(0), address: 0 }
    }
    /// #PF at a linear address.
    pub const fn pf(address: u64, code: u32) -> Self {
        Self { vector: vector::PF, error_code: Some(code), address }
    }
    /// #DB with bits for DR6.
    pub const fn db(dr6: u64) -> Self {
        Self { vector: vector::DB, error_code: None, address: dr6 }
    }
}

/// Page-fault error-code bits. SDM Vol. 3, "Page-Fault Exceptions".
#[allow(missing_docs, reason = "the manual's own names")]
pub mod page_fault {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
}

/// Event type, bits 10:8 of the event-identification fields.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum EventKind {
    ExternalInterrupt,
    Reserved1,
    Nmi,
    HardwareException,
    SoftwareInterrupt,
    PrivilegedSoftwareException,
    SoftwareException,
    Other,
}

impl BitValue for EventKind {
    #[inline(always)]
    fn from_bits(raw: u64) -> Self {
        match raw & 7 {
            0 => Self::ExternalInterrupt,
            1 => Self::Reserved1,
            2 => Self::Nmi,
            3 => Self::HardwareException,
            4 => Self::SoftwareInterrupt,
            5 => Self::PrivilegedSoftwareException,
            6 => Self::SoftwareException,
            _ => Self::Other,
        }
    }
    #[inline(always)]
    fn bits(self) -> u64 {
        self as u64
    }
}

bits! {
    /// What VM entry injects. SDM Vol. 3, "VM-Entry Controls for Event Injection".
    pub struct InjectedEvent: u32 {
        VECTOR            7:0  u8;
        KIND             10:8  EventKind;
        HAS_ERROR_CODE   11    bool;
        NESTED_EXCEPTION 13    bool;
        VALID            31    bool;
    }
}

bits! {
    /// The exiting event and the original event. SDM Vol. 3, "Information for VM Exits Due to Vectored Events".
    pub struct RecordedEvent: u32 {
        VECTOR            7:0  u8;
        KIND             10:8  EventKind;
        HAS_ERROR_CODE   11    bool;
        NMI_UNBLOCKING   12    bool;
        NESTED_EXCEPTION 13    bool;
        VALID            31    bool;
    }
}

impl InjectedEvent {
    /// A valid event to inject.
    pub fn new(kind: EventKind, vector: u8, has_error_code: bool) -> Self {
        Self::default()
            .with(Self::VECTOR, vector)
            .with(Self::KIND, kind)
            .with(Self::HAS_ERROR_CODE, has_error_code)
            .with(Self::VALID, true)
    }
}

impl RecordedEvent {
    /// A valid recorded event.
    pub fn new(kind: EventKind, vector: u8, has_error_code: bool) -> Self {
        Self(InjectedEvent::new(kind, vector, has_error_code).0)
    }
}

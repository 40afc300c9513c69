//! Who owns an exit from L2: one row for each exit reason. First "does L0 keep it?", then "does L1 want it?"; an exit
//! that L1 does not want was L0's own intercept. SDM Vol. 3, "VMX Non-Root Operation", "Basic VM-Exit Information".

use crate::ept01::Ept01;
use vmcs12::addr::{Gpa, Physical};
use vmcs12::arch::event::{EventKind, RecordedEvent, vector};
use vmcs12::control::*;
use vmcs12::cpu_state::{CpuState, gpr};
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::{ControlRegisterAccess, ControlRegisterAccessKind, IoInstruction};
use vmcs12::field::{Field, Vmcs, table::*};

/// Whose an exit is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// L0 keeps it; L1 never knows.
    L0,
    /// L1 gets it.
    L1,
}

/// What the questions are about: the exit in vmcs02, and what L1 asked for in vmcs12.
pub struct Question<'a, P: Physical> {
    /// Where the exit is recorded.
    pub vmcs02: &'a Vmcs,
    /// What L1 asked for.
    pub vmcs12: &'a Vmcs,
    /// L2's registers.
    pub state: &'a CpuState,
    /// For L1's bitmaps.
    pub memory: &'a P,
    /// For L1's bitmaps.
    pub ept01: &'a Ept01,
}

/// When a question of the table is answered with yes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    Never,
    Always,
    /// If vmcs12 has the control.
    If(Control),
    /// If vmcs12 has one of the controls.
    IfEither(Control, Control),
    /// It depends on the exit.
    Ask(Topic),
}
use Answer::{Always, Ask, If, IfEither, Never};

/// What an answer depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Topic {
    Exception,
    ControlRegister,
    IoBitmaps,
    MsrRead,
    MsrWrite,
    ExtendedState,
}
use Topic::{ControlRegister, Exception, ExtendedState, IoBitmaps, MsrRead, MsrWrite};

#[derive(Clone, Copy)]
struct Row {
    reason: Reason,
    keep: Answer,
    want: Answer,
}

const fn row(reason: Reason, keep: Answer, want: Answer) -> Row {
    Row { reason, keep, want }
}

#[rustfmt::skip]
static ROUTES: [Row; Reason::COUNT] = [
    // exit from L2                          L0 keeps it  L1 wants it
    row(Reason::ExceptionOrNmi,              Never,       Ask(Exception)),
    row(Reason::ExternalInterrupt,           Always,      Never), // the machine's; L1's own is synthesised
    row(Reason::TripleFault,                 Never,       Always),
    row(Reason::InitSignal,                  Never,       Always),
    row(Reason::StartupIpi,                  Never,       Always),
    row(Reason::IoSmi,                       Always,      Never),
    row(Reason::OtherSmi,                    Always,      Never),
    row(Reason::InterruptWindow,             Never,       If(INTERRUPT_WINDOW_EXITING)),
    row(Reason::NmiWindow,                   Never,       If(NMI_WINDOW_EXITING)),
    row(Reason::TaskSwitch,                  Never,       Always),
    row(Reason::Cpuid,                       Never,       Always),
    row(Reason::Getsec,                      Never,       Always),
    row(Reason::Hlt,                         Never,       If(HLT_EXITING)),
    row(Reason::Invd,                        Never,       Always),
    row(Reason::Invlpg,                      Never,       If(INVLPG_EXITING)),
    row(Reason::Rdpmc,                       Never,       If(RDPMC_EXITING)),
    row(Reason::Rdtsc,                       Never,       If(RDTSC_EXITING)),
    row(Reason::Rsm,                         Never,       Always),
    row(Reason::Vmcall,                      Never,       Always),
    row(Reason::Vmclear,                     Never,       Always),
    row(Reason::Vmlaunch,                    Never,       Always),
    row(Reason::Vmptrld,                     Never,       Always),
    row(Reason::Vmptrst,                     Never,       Always),
    row(Reason::Vmread,                      Never,       Always), // L1 has no VMCS shadowing to offer L2
    row(Reason::Vmresume,                    Never,       Always),
    row(Reason::Vmwrite,                     Never,       Always),
    row(Reason::Vmxoff,                      Never,       Always),
    row(Reason::Vmxon,                       Never,       Always),
    row(Reason::ControlRegisterAccess,       Never,       Ask(ControlRegister)),
    row(Reason::MovDr,                       Never,       If(MOV_DR_EXITING)),
    row(Reason::IoInstruction,               Never,       Ask(IoBitmaps)),
    row(Reason::Rdmsr,                       Never,       Ask(MsrRead)),
    row(Reason::Wrmsr,                       Never,       Ask(MsrWrite)),
    row(Reason::EntryFailureGuestState,      Always,      Never), // a bug of the merge: the checks were made before
    row(Reason::EntryFailureMsrLoading,      Always,      Never), // vmcs02 has no MSR lists
    row(Reason::Mwait,                       Never,       If(MWAIT_EXITING)),
    row(Reason::MonitorTrapFlag,             Never,       Always), // or L1 injected one: L0 never does
    row(Reason::Monitor,                     Never,       If(MONITOR_EXITING)),
    row(Reason::Pause,                       Never,       IfEither(PAUSE_EXITING, PAUSE_LOOP_EXITING)),
    row(Reason::EntryFailureMachineCheck,    Always,      Never),
    row(Reason::TprBelowThreshold,           Never,       If(USE_TPR_SHADOW)),
    row(Reason::ApicAccess,                  Never,       If(VIRTUALIZE_APIC_ACCESSES)),
    row(Reason::VirtualizedEoi,              Never,       If(VIRTUAL_INTERRUPT_DELIVERY)),
    row(Reason::GdtrIdtrAccess,              Never,       If(DESCRIPTOR_TABLE_EXITING)),
    row(Reason::LdtrTrAccess,                Never,       If(DESCRIPTOR_TABLE_EXITING)),
    row(Reason::EptViolation,                Always,      Never), // ept02 is L0's; what ept12 forbids is synthesised
    row(Reason::EptMisconfiguration,         Always,      Never), // as above
    row(Reason::Invept,                      Never,       Always),
    row(Reason::Rdtscp,                      Never,       If(RDTSC_EXITING)),
    row(Reason::VmxPreemptionTimerExpired,   Never,       If(ACTIVATE_VMX_PREEMPTION_TIMER)),
    row(Reason::Invvpid,                     Never,       Always),
    row(Reason::WbinvdOrWbnoinvd,            Never,       If(WBINVD_EXITING)),
    row(Reason::Xsetbv,                      Never,       Always),
    row(Reason::ApicWrite,                   Never,       IfEither(APIC_REGISTER_VIRTUALIZATION, VIRTUAL_INTERRUPT_DELIVERY)),
    row(Reason::Rdrand,                      Never,       If(RDRAND_EXITING)),
    row(Reason::Invpcid,                     Never,       If(INVLPG_EXITING)),
    row(Reason::Vmfunc,                      Never,       If(ENABLE_VM_FUNCTIONS)),
    row(Reason::Encls,                       Never,       If(ENABLE_ENCLS_EXITING)),
    row(Reason::Rdseed,                      Never,       If(RDSEED_EXITING)),
    row(Reason::PageModificationLogFull,     Always,      Never), // L1's log would be L0's to write
    row(Reason::Xsaves,                      Never,       Ask(ExtendedState)),
    row(Reason::Xrstors,                     Never,       Ask(ExtendedState)),
    row(Reason::Pconfig,                     Never,       If(ENABLE_PCONFIG)),
    row(Reason::SppRelatedEvent,             Always,      Never),
    row(Reason::Umwait,                      Never,       If(RDTSC_EXITING)),
    row(Reason::Tpause,                      Never,       If(RDTSC_EXITING)),
    row(Reason::Loadiwkey,                   Never,       If(LOADIWKEY_EXITING)),
    row(Reason::Enclv,                       Never,       If(ENABLE_ENCLV_EXITING)),
    row(Reason::EnqcmdPasidTranslation,      Never,       If(PASID_TRANSLATION)),
    row(Reason::EnqcmdsPasidTranslation,     Never,       If(PASID_TRANSLATION)),
    row(Reason::BusLock,                     Never,       If(VMM_BUS_LOCK_DETECTION)),
    row(Reason::InstructionTimeout,          Never,       If(INSTRUCTION_TIMEOUT)),
    row(Reason::Seamcall,                    Never,       Always),
    row(Reason::Tdcall,                      Never,       Always),
    row(Reason::Rdmsrlist,                   Never,       If(ENABLE_MSR_LIST_INSTRUCTIONS)),
    row(Reason::Wrmsrlist,                   Never,       If(ENABLE_MSR_LIST_INSTRUCTIONS)),
    row(Reason::Urdmsr,                      Never,       Always),
    row(Reason::Uwrmsr,                      Never,       Always),
    row(Reason::RdmsrImmediate,              Never,       Always),
    row(Reason::WrmsrnsImmediate,            Never,       Always),
];

const _: () = {
    let mut i = 0;
    while i < Reason::COUNT {
        assert!(ROUTES[i].reason as u16 == Reason::ALL[i] as u16, "row i is reason i");
        i += 1;
    }
};

const NUMBERS: usize = Reason::ALL[Reason::COUNT - 1] as usize + 1;

/// The row of each reason's number.
static ROW_OF: [u8; NUMBERS] = {
    let mut rows = [0; NUMBERS];
    let mut i = 0;
    while i < Reason::COUNT {
        rows[Reason::ALL[i] as usize] = i as u8;
        i += 1;
    }
    rows
};

/// Whose is the exit that vmcs02 records?
pub fn owner<P: Physical>(reason: Reason, question: &Question<P>) -> Owner {
    let row = &ROUTES[usize::from(ROW_OF[reason as usize])];
    if !row.keep.holds(question) && row.want.holds(question) { Owner::L1 } else { Owner::L0 }
}

impl Answer {
    fn holds<P: Physical>(self, question: &Question<P>) -> bool {
        match self {
            Never => false,
            Always => true,
            If(control) => question.vmcs12.has(control),
            IfEither(one, other) => question.vmcs12.has(one) || question.vmcs12.has(other),
            Ask(Exception) => question.wants_exception(),
            Ask(ControlRegister) => question.wants_control_register_access(),
            Ask(IoBitmaps) => question.wants_io(),
            Ask(MsrRead) => question.wants_msr(MsrBitmap::READ),
            Ask(MsrWrite) => question.wants_msr(MsrBitmap::WRITE),
            Ask(ExtendedState) => question.wants_extended_state(),
        }
    }
}

/// Where the bitmaps for one direction begin in the page. SDM Vol. 3, "MSR-Bitmap Address".
#[derive(Clone, Copy)]
struct MsrBitmap {
    low: u64,
    high: u64,
}

impl MsrBitmap {
    const READ: Self = Self { low: 0x000, high: 0x400 };
    const WRITE: Self = Self { low: 0x800, high: 0xc00 };
    const HIGH_MSRS: u32 = 0xc000_0000;
    const MSRS: u32 = 0x2000;

    /// The bit of an MSR; `None` for one that the bitmaps do not cover, which exits always.
    fn bit(self, index: u32) -> Option<u64> {
        let (base, index) = if index < Self::MSRS {
            (self.low, index)
        } else {
            (self.high, index.checked_sub(Self::HIGH_MSRS).filter(|&index| index < Self::MSRS)?)
        };
        Some(base * 8 + u64::from(index))
    }
}

/// Ports that one I/O bitmap covers, and all of them.
const PORTS_PER_BITMAP: u32 = 0x8000;
const PORTS: u32 = 0x1_0000;

impl<P: Physical> Question<'_, P> {
    /// SDM Vol. 3, "Exception Bitmap".
    fn wants_exception(&self) -> bool {
        let event = self.vmcs02.get(EXITING_EVENT_IDENTIFICATION);
        if event.get(RecordedEvent::KIND) == EventKind::Nmi {
            return self.vmcs12.has(NMI_EXITING);
        }
        let vector = event.get(RecordedEvent::VECTOR);
        let listed = self.vmcs12.get(EXCEPTION_BITMAP) >> (vector & 31) & 1 != 0;
        if vector != vector::PF {
            return listed;
        }
        let masked = self.vmcs02.get(EXITING_EVENT_ERROR_CODE) & self.vmcs12.get(PAGE_FAULT_ERROR_CODE_MASK);
        listed == (masked == self.vmcs12.get(PAGE_FAULT_ERROR_CODE_MATCH))
    }

    /// SDM Vol. 3, "Instructions That Cause VM Exits Conditionally": accesses to control registers.
    fn wants_control_register_access(&self) -> bool {
        use ControlRegisterAccessKind::{Clts, Lmsw, MovFromCr, MovToCr};
        let access = ControlRegisterAccess(self.vmcs02.get(EXIT_QUALIFICATION));
        let kind = access.get(ControlRegisterAccess::KIND);
        match (kind, access.get(ControlRegisterAccess::REGISTER)) {
            (Clts | Lmsw, _) => true,
            (MovToCr, 0) => self.differs(access, CR0_GUEST_HOST_MASK, CR0_READ_SHADOW),
            (MovToCr, 4) => self.differs(access, CR4_GUEST_HOST_MASK, CR4_READ_SHADOW),
            (MovToCr, 3) => self.vmcs12.has(CR3_LOAD_EXITING) && !self.is_cr3_target(self.source(access)),
            (MovFromCr, 3) => self.vmcs12.has(CR3_STORE_EXITING),
            (MovToCr, 8) => self.vmcs12.has(CR8_LOAD_EXITING),
            (MovFromCr, 8) => self.vmcs12.has(CR8_STORE_EXITING),
            (MovToCr | MovFromCr, _) => true,
        }
    }

    /// Does the source differ from the read shadow in a bit that L1 owns?
    fn differs(&self, access: ControlRegisterAccess, mask: Field<u64>, shadow: Field<u64>) -> bool {
        (self.source(access) ^ self.vmcs12.get(shadow)) & self.vmcs12.get(mask) != 0
    }

    /// The source register of MOV to CR.
    fn source(&self, access: ControlRegisterAccess) -> u64 {
        source(self.vmcs02, self.state, access)
    }

    fn is_cr3_target(&self, value: u64) -> bool {
        let targets = [CR3_TARGET_VALUE_0, CR3_TARGET_VALUE_1, CR3_TARGET_VALUE_2, CR3_TARGET_VALUE_3];
        let count = self.vmcs12.get(CR3_TARGET_COUNT) as usize;
        targets.iter().take(count).any(|&target| self.vmcs12.get(target) == value)
    }

    /// SDM Vol. 3, "I/O-Bitmap Addresses": any port of the access, and always one that wraps around.
    fn wants_io(&self) -> bool {
        if !self.vmcs12.has(USE_IO_BITMAPS) {
            return self.vmcs12.has(UNCONDITIONAL_IO_EXITING);
        }
        let access = IoInstruction(self.vmcs02.get(EXIT_QUALIFICATION));
        let first = u32::from(access.get(IoInstruction::PORT));
        let last = first + u32::from(access.get(IoInstruction::SIZE_MINUS_1));
        last >= PORTS || (first..=last).any(|port| self.is_port_listed(port))
    }

    fn is_port_listed(&self, port: u32) -> bool {
        let bitmap = if port < PORTS_PER_BITMAP { ADDRESS_OF_IO_BITMAP_A } else { ADDRESS_OF_IO_BITMAP_B };
        self.bit(Gpa(self.vmcs12.get(bitmap).0), u64::from(port % PORTS_PER_BITMAP))
    }

    /// SDM Vol. 3, "MSR-Bitmap Address".
    fn wants_msr(&self, bitmap: MsrBitmap) -> bool {
        let index = self.state.gpr[gpr::RCX] as u32;
        let bit = bitmap.bit(index).filter(|_| self.vmcs12.has(USE_MSR_BITMAPS));
        bit.is_none_or(|bit| self.bit(Gpa(self.vmcs12.get(ADDRESS_OF_MSR_BITMAPS).0), bit))
    }

    /// Bit n of a bitmap in L1's memory.
    fn bit(&self, bitmap: Gpa, n: u64) -> bool {
        let mut byte = [0];
        self.memory.read(self.ept01.machine(bitmap.plus(n / 8)), &mut byte);
        byte[0] >> (n % 8) & 1 != 0
    }

    /// SDM Vol. 3, "XSS-Exiting Bitmap": a component asked for in EDX:EAX and in IA32_XSS.
    fn wants_extended_state(&self) -> bool {
        let low_half = |register: usize| self.state.gpr[register] & 0xffff_ffff;
        let asked = low_half(gpr::RDX) << 32 | low_half(gpr::RAX);
        asked & self.state.xss & self.vmcs12.get(XSS_EXITING_BITMAP) != 0
    }
}

/// The source register of MOV to CR.
pub(crate) fn source(vmcs02: &Vmcs, state: &CpuState, access: ControlRegisterAccess) -> u64 {
    match usize::from(access.get(ControlRegisterAccess::GPR)) {
        gpr::RSP => vmcs02.get(GUEST_RSP),
        other => state.gpr[other],
    }
}

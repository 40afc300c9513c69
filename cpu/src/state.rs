//! The processor's state while guest code runs.

use crate::block::{Cache, Op};
use crate::bus::Bus;
use crate::flags::Status;
use crate::mmu::Fault;
use crate::mmu::ept::GuestPhysical;
use crate::mmu::memory::Memory;
use crate::mmu::tlb::{Context, Key, Pool};
use crate::vmx::Controls;
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::eptp::Eptp;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::arch::{efer, rflags};
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::Cause;
use vmcs12::field::VmcsSet;

/// Index in [`Cpu::gpr`] of a register that is always 0.
pub(crate) const ZERO: usize = 16;
/// Index in [`Cpu::gpr`] of the RIP of the block that runs.
pub(crate) const BLOCK_RIP: usize = 17;

/// What the processor is told about the model that it plays.
#[derive(Clone, Debug)]
pub struct Model {
    /// What a VMCS given to `enter` may use.
    pub capabilities: vmcs12::caps::Capabilities,
    /// Physical-address width of the profile: reserved bits of the guest's page tables.
    pub physical_width: u32,
    /// Instruction-set extensions that raise #UD because the profile lacks them.
    pub lacks: Lacks,
}

/// Extensions whose instructions raise #UD, as a bit set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Lacks(pub u64);

impl Lacks {
    /// Is an extension missing?
    #[inline]
    pub fn has(self, extension: u64) -> bool {
        self.0 & extension != 0
    }
}

/// The bits of [`Lacks`].
#[allow(missing_docs, reason = "the manual's own names")]
pub mod lacks {
    pub const BMI1: u64 = 1 << 0;
    pub const BMI2: u64 = 1 << 1;
    pub const LZCNT: u64 = 1 << 2;
    pub const POPCNT: u64 = 1 << 3;
    pub const MOVBE: u64 = 1 << 4;
    pub const CMPXCHG16B: u64 = 1 << 5;
    pub const SSE3: u64 = 1 << 6;
    pub const SSSE3: u64 = 1 << 7;
    pub const SSE4_1: u64 = 1 << 8;
    pub const SSE4_2: u64 = 1 << 9;
    pub const AES: u64 = 1 << 10;
    pub const PCLMULQDQ: u64 = 1 << 11;
    pub const AVX: u64 = 1 << 12;
    pub const AVX2: u64 = 1 << 13;
    pub const FMA: u64 = 1 << 14;
    pub const F16C: u64 = 1 << 15;
    pub const RDRAND: u64 = 1 << 16;
    pub const RDSEED: u64 = 1 << 17;
    pub const FSGSBASE: u64 = 1 << 18;
    pub const XSAVE: u64 = 1 << 19;
    pub const XSAVEOPT: u64 = 1 << 20;
    pub const XSAVEC: u64 = 1 << 21;
    pub const XSAVES: u64 = 1 << 22;
    pub const CLFLUSHOPT: u64 = 1 << 23;
    pub const CLWB: u64 = 1 << 24;
    pub const RDPID: u64 = 1 << 25;
    pub const SMAP: u64 = 1 << 26;
    pub const PKU: u64 = 1 << 27;
    pub const MONITOR: u64 = 1 << 28;
    pub const RDTSCP: u64 = 1 << 29;
    pub const PREFETCHW: u64 = 1 << 30;
    /// Never implemented: every instruction of an extension that has no bit of its own and is not in the base.
    pub const UNKNOWN: u64 = 1 << 63;
}

/// Time at an entry.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    /// Virtual nanoseconds; the processor adds one for each instruction that it retires.
    pub now_ns: u64,
    /// TSC ticks per virtual nanosecond, times 2³².
    pub tsc_mult_q32: u64,
}

/// Size of code: CS.L and CS.D.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

/// Why the chain of handlers ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stop {
    /// Look up the block at RIP and go on.
    Continue,
    /// The instruction at RIP faulted.
    Fault(Fault),
    /// A VM exit or the end of the budget, already recorded.
    Exit(Cause),
}

/// The software processor.
#[repr(C)]
pub struct Cpu {
    /// RAX…R15, then [`ZERO`], [`BLOCK_RIP`], FS.base and GS.base.
    pub(crate) gpr: [u64; 20],
    pub(crate) status: Status,
    pub(crate) context: *mut Context,
    /// Instructions retired since the entry, before the block that runs.
    pub(crate) retired: u64,
    /// A block may only be entered while `retired` is at most this.
    pub(crate) soft_limit: u64,
    /// A repeated string instruction may count up to this.
    pub(crate) rep_limit: u64,
    /// `retired` must not pass this.
    pub(crate) hard_limit: u64,
    /// The VMX-preemption timer expires when `retired` is this.
    pub(crate) timer_limit: u64,
    /// Bits that RIP has in this code size.
    pub(crate) ip_mask: u64,
    pub(crate) rip: u64,
    /// RFLAGS but the status flags.
    pub(crate) rflags: u64,
    pub(crate) cpl: u8,
    pub(crate) code_size: CodeSize,
    /// SS is used with 32-bit (or 64-bit) stack pointers.
    pub(crate) stack_mask: u64,
    /// Something must be looked at after STI, POPF, IRET: a window exit, single-step.
    pub(crate) attention: bool,
    pub(crate) segments: [Segment; 8],
    pub(crate) stop: Stop,
    /// Value of `exact_retired` at which the instruction after STI (MOV SS) executes.
    pub(crate) sti_shadow: u64,
    pub(crate) mov_ss_shadow: u64,
    pub(crate) nmi_blocked: bool,
    /// The IRET that runs has ended NMI blocking, so that an exit of its own must say so.
    pub(crate) nmi_unblocking: bool,
    /// The instruction that runs has taken the place of its own single-step trap: INT n, SYSCALL.
    pub(crate) trap_suppressed: bool,
    /// The instruction that runs is an IRET that has loaded RFLAGS.RF for the next one.
    pub(crate) resume_loaded: bool,
    /// The count of instructions at the last delivery of an event, and how many there have been since it changed.
    pub(crate) stall: (u64, u32),
    /// TSC of the first and of the last PAUSE of the loop that PAUSE-loop exiting watches.
    pub(crate) pause_loop: (u64, u64),
    pub(crate) controls: Controls,

    pub(crate) cr0: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) efer: u64,
    pub(crate) pdpte: [u64; 4],
    pub(crate) pkru: u32,
    pub(crate) gdtr: (u64, u32),
    pub(crate) idtr: (u64, u32),
    pub(crate) dr7: u64,
    pub(crate) debugctl: u64,
    pub(crate) pat: u64,
    pub(crate) sysenter: (u64, u64, u64),
    /// Debug exceptions recognized and not yet delivered: DR6 bits.
    pub(crate) pending_debug: u64,
    pub(crate) vpid: u16,
    pub(crate) ept: bool,
    pub(crate) eptp: Eptp,
    /// MONITOR has armed the address-range monitor.
    pub(crate) monitor_armed: bool,

    pub(crate) model: Model,
    pub(crate) time: Time,
    pub(crate) memory: Memory,
    pub(crate) pool: Pool,
    pub(crate) guest_physical: GuestPhysical,
    pub(crate) blocks: Cache,
    pub(crate) bus: Option<*mut dyn Bus>,
    /// State outside the VMCS: valid while `enter` or `complete` runs.
    pub(crate) state: *mut CpuState,
    /// The VMCS entered: valid while `enter` or `complete` runs.
    pub(crate) vmcs: *mut VmcsSet,
    /// Supervisor-context indices that hold user pages, installed while EFLAGS.AC suspends SMAP.
    pub(crate) smap_suspended: Vec<usize>,
    /// Where VMREAD and VMWRITE go without an exit, and native code: see their modules.
    pub(crate) thunks: crate::native::Thunks,
}

// SAFETY: the raw pointers are into the processor's own boxes (`context`, blocks) or valid only inside `enter`.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A processor over this memory.
    pub fn new(memory: Memory, model: Model) -> Self {
        let mut pool = Pool::new();
        let context = pool.select(Key::default());
        Self {
            gpr: [0; 20],
            status: Status::default(),
            context,
            retired: 0,
            soft_limit: 0,
            rep_limit: 0,
            hard_limit: 0,
            timer_limit: u64::MAX,
            ip_mask: 0xffff,
            rip: 0,
            rflags: rflags::FIXED,
            cpl: 0,
            code_size: CodeSize::Bits16,
            stack_mask: 0xffff,
            attention: false,
            segments: [Segment::default(); 8],
            stop: Stop::Continue,
            sti_shadow: u64::MAX,
            mov_ss_shadow: u64::MAX,
            nmi_blocked: false,
            nmi_unblocking: false,
            trap_suppressed: false,
            resume_loaded: false,
            stall: (0, 0),
            pause_loop: (0, 0),
            controls: Controls::default(),
            cr0: cr0::ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            pdpte: [0; 4],
            pkru: 0,
            gdtr: (0, 0xffff),
            idtr: (0, 0xffff),
            dr7: 0x400,
            debugctl: 0,
            pat: 0,
            sysenter: (0, 0, 0),
            pending_debug: 0,
            vpid: 0,
            ept: false,
            eptp: Eptp::default(),
            monitor_armed: false,
            model,
            time: Time { now_ns: 0, tsc_mult_q32: 1 << 32 },
            memory,
            pool,
            guest_physical: GuestPhysical::new(),
            blocks: Cache::new(),
            bus: None,
            state: std::ptr::null_mut(),
            vmcs: std::ptr::null_mut(),
            smap_suspended: Vec::with_capacity(16),
            thunks: crate::native::Thunks::new(),
        }
    }

    /// A segment register.
    #[inline(always)]
    pub(crate) fn segment(&self, register: SegmentRegister) -> &Segment {
        &self.segments[register as usize]
    }

    /// RFLAGS with its status flags.
    pub(crate) fn full_rflags(&self) -> u64 {
        self.rflags | self.status.bits()
    }

    /// Replaces all of RFLAGS; the caller has applied the instruction's mask.
    pub(crate) fn set_full_rflags(&mut self, value: u64) {
        self.status = Status::from_bits(value);
        let changed = self.rflags ^ value;
        self.rflags = (value & rflags::ALL & !rflags::STATUS) | rflags::FIXED;
        if changed & rflags::AC != 0 {
            self.alignment_or_smap_changed();
        }
        if changed & rflags::VM != 0 {
            self.refresh_mode();
        }
        self.refresh_attention();
    }

    /// Is the processor in IA-32e mode?
    #[inline(always)]
    pub(crate) fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Is the processor in 64-bit mode?
    #[inline(always)]
    pub(crate) fn is_64(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// Is CR0.PE set?
    #[inline(always)]
    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Is the processor in virtual-8086 mode?
    #[inline(always)]
    pub(crate) fn virtual_8086(&self) -> bool {
        self.rflags & rflags::VM != 0
    }

    /// I/O privilege level.
    pub(crate) fn iopl(&self) -> u8 {
        (self.rflags >> rflags::IOPL_SHIFT & 3) as u8
    }

    /// Instructions retired before the one of `op`.
    #[inline(always)]
    pub(crate) fn retired_before(&self, op: &Op) -> u64 {
        self.retired + u64::from(op.index)
    }

    /// Recomputes what follows from CS, SS, CR0, EFER and RFLAGS.VM, and selects the translations.
    pub(crate) fn refresh_mode(&mut self) {
        let cs = self.segment(SegmentRegister::Cs).rights;
        let code_size = if self.virtual_8086() {
            CodeSize::Bits16
        } else if self.long_mode() && cs.get(AccessRights::L) {
            CodeSize::Bits64
        } else if cs.get(AccessRights::DB) {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        };
        self.code_size = code_size;
        self.ip_mask = match code_size {
            CodeSize::Bits16 | CodeSize::Bits32 => 0xffff_ffff,
            CodeSize::Bits64 => u64::MAX,
        };
        self.stack_mask = match code_size {
            CodeSize::Bits64 => u64::MAX,
            _ if self.segment(SegmentRegister::Ss).rights.get(AccessRights::DB) && !self.virtual_8086() => {
                0xffff_ffff
            }
            _ => 0xffff,
        };
        self.refresh_context();
    }

    /// Bits of the context key that say how translations are used.
    fn context_mode(&self) -> u32 {
        let flag = |on: bool, bit: u32| u32::from(on) << bit;
        let cr4_bits = [cr4::PAE, cr4::PSE, cr4::LA57, cr4::SMEP, cr4::SMAP, cr4::PKE, cr4::PGE];
        let mut mode = flag(self.cr0 & cr0::PG != 0, 0) | flag(self.cr0 & cr0::WP != 0, 1);
        mode |= flag(self.long_mode(), 2) | flag(self.efer & efer::NXE != 0, 3);
        for (i, bit) in cr4_bits.iter().enumerate() {
            mode |= flag(self.cr4 & bit != 0, 4 + i as u32);
        }
        mode |= flag(self.cpl == 3, 11) | (self.code_size as u32) << 12;
        mode | flag(self.checks_each_access(), 14)
    }

    /// Must every access take the slow path: alignment checks, data breakpoints?
    #[inline]
    pub(crate) fn checks_each_access(&self) -> bool {
        self.alignment_checked() || self.has_data_breakpoints()
    }

    /// Does #AC apply? SDM Vol. 3, "Alignment Check Exception".
    pub(crate) fn alignment_checked(&self) -> bool {
        self.cpl == 3 && self.rflags & rflags::AC != 0 && self.cr0 & cr0::AM != 0
    }

    /// Is a data or I/O breakpoint enabled in DR7?
    pub(crate) fn has_data_breakpoints(&self) -> bool {
        self.dr7 & 0xff != 0
            && (0..4).any(|i| self.dr7 >> (2 * i) & 3 != 0 && self.dr7 >> (16 + 4 * i) & 3 != 0)
    }

    /// Is an instruction breakpoint enabled in DR7?
    pub(crate) fn has_code_breakpoints(&self) -> bool {
        self.dr7 & 0xff != 0
            && (0..4).any(|i| self.dr7 >> (2 * i) & 3 != 0 && self.dr7 >> (16 + 4 * i) & 3 == 0)
    }

    /// Current PCID: 0 while CR4.PCIDE is 0.
    pub(crate) fn pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { (self.cr3 & 0xfff) as u16 } else { 0 }
    }

    /// Selects the translations of the current address space, mode and privilege.
    pub(crate) fn refresh_context(&mut self) {
        self.end_smap_suspension();
        let key = Key {
            vpid: self.vpid,
            pcid: self.pcid(),
            ept_root: if self.ept { self.eptp.root().0 | 1 } else { 0 },
            mode: self.context_mode(),
            pkru: if self.cr4 & cr4::PKE != 0 { self.pkru } else { 0 },
        };
        self.context = self.pool.select(key);
    }

    /// Recomputes whether the instructions that change IF, TF or NMI blocking must return to the run loop.
    pub(crate) fn refresh_attention(&mut self) {
        self.attention = self.controls.windows
            || self.rflags & rflags::TF != 0
            || self.pending_debug != 0
            || self.has_code_breakpoints();
    }

    /// After a change of EFLAGS.AC.
    pub(crate) fn alignment_or_smap_changed(&mut self) {
        if self.rflags & rflags::AC == 0 {
            self.end_smap_suspension();
        }
        if self.cpl == 3 && self.cr0 & cr0::AM != 0 {
            self.refresh_context();
        }
    }

    /// Takes back the user pages that EFLAGS.AC let into a supervisor context.
    pub(crate) fn end_smap_suspension(&mut self) {
        while let Some(index) = self.smap_suspended.pop() {
            // SAFETY: `context` points to a context of `pool`, which outlives this call; contexts never move.
            unsafe { (*self.context).drop_index(index) };
        }
    }
}

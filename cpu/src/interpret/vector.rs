//! Vector and floating-point instructions: gating, operands and faults around `native`.
//!
//! Whatever may fault comes first: the control bits, a pending x87 exception, the operand's address, alignment
//! and pages (a destination is probed for writing), and then `native` changes the state.

mod host;
mod masked;
mod moves;
mod plain;
mod save;
mod x87;

use crate::block::{Handler, Op};
use crate::decode::{Decoding, Selected};
use crate::native::{self, Class, Feature, Features, Software, Work};
use crate::state::{Cpu, Lacks, lacks};
use vmcs12::arch::cr::{cr0, cr4};
use vmcs12::arch::event::Exception;
use vmcs12::cpu_state::VectorState;

/// The handler around a body, `fn(&mut Cpu, &Op) -> Option<()>` with `#[inline(never)]`: a handler in whose frame
/// a buffer lives could not end in a sibling call.
macro_rules! outlined {
    ($($body:tt)+) => {{
        unsafe fn run(cpu: &mut $crate::state::Cpu, op: *const $crate::block::Op) -> *const $crate::block::Op {
            // SAFETY: handlers are called with a live operation.
            let this = unsafe { &*op };
            $crate::interpret::attempt!(cpu, op, $($body)+(cpu, this));
            $crate::interpret::next!(cpu, op)
        }
        run as $crate::block::Handler
    }};
}
/// As `outlined!`, for a memory form: with flat addresses, and with the others.
macro_rules! by_address {
    ($d:expr, $body:ident $(, $parameter:tt)*) => {
        if $d.flat {
            $crate::interpret::vector::outlined!($body::<$crate::interpret::operand::Flat $(, $parameter)*>)
        } else {
            $crate::interpret::vector::outlined!($body::<$crate::interpret::operand::Segmented $(, $parameter)*>)
        }
    };
}
use {by_address, outlined};

/// The features that a model may lack, by their bits.
#[rustfmt::skip]
const OPTIONAL: [(u64, Feature); 14] = [
    (lacks::SSE3,      Feature::Sse3),
    (lacks::SSSE3,     Feature::Ssse3),
    (lacks::SSE4_1,    Feature::Sse41),
    (lacks::SSE4_2,    Feature::Sse42),
    (lacks::AES,       Feature::Aes),
    (lacks::PCLMULQDQ, Feature::Pclmulqdq),
    (lacks::AVX,       Feature::Avx),
    (lacks::AVX2,      Feature::Avx2),
    (lacks::FMA,       Feature::Fma),
    (lacks::F16C,      Feature::F16c),
    (lacks::XSAVE,     Feature::Xsave),
    (lacks::XSAVEOPT,  Feature::Xsaveopt),
    (lacks::XSAVEC,    Feature::Xsavec),
    (lacks::XSAVES,    Feature::Xsaves),
];
/// The features of every model.
const ALWAYS: [Feature; 6] =
    [Feature::Fpu, Feature::Cmov, Feature::Mmx, Feature::Fxsr, Feature::Sse, Feature::Sse2];

fn offered(model: Lacks) -> Features {
    let optional = OPTIONAL.iter().filter(|(lacking, _)| !model.has(*lacking)).map(|&(_, feature)| feature);
    ALWAYS.into_iter().chain(optional).fold(Features::default(), Features::with)
}

/// The handler of a vector or floating-point instruction; `None` if it is none, or the model lacks it.
pub(crate) fn select(cpu: &mut Cpu, d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    let offered = offered(d.lacks).and(cpu.thunks.host());
    let prepared = cpu.thunks.prepare(d.inst, offered)?;
    let run = match prepared.work {
        Work::Move(copy) => moves::select(copy, prepared.terms, d, op),
        Work::Host(id, registers) => host::select(cpu.thunks.form(id), id, registers, d, op),
        Work::Software(software) => of_software(software, prepared.terms, d, op)?,
    };
    Some(Selected::next(run))
}

fn of_software(software: Software, terms: native::Terms, d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    Some(match software {
        Software::Nothing if terms.class == Class::General => super::nop,
        Software::Ldmxcsr
        | Software::Stmxcsr
        | Software::Fxsave(_)
        | Software::Fxrstor(_)
        | Software::Xsave(..)
        | Software::Xrstor(..) => save::select(software, terms, d, op)?,
        Software::Vzeroupper
        | Software::Vzeroall
        | Software::MaskedLoad(_)
        | Software::MaskedStore(_)
        | Software::Gather(_) => masked::select(software, terms, d, op)?,
        Software::Nothing
        | Software::Fwait
        | Software::Fninit
        | Software::Fnclex
        | Software::Fldcw
        | Software::Fnstcw
        | Software::FnstswMemory
        | Software::FnstswAx
        | Software::Fldenv(_)
        | Software::Fnstenv(_)
        | Software::Frstor(_)
        | Software::Fnsave(_)
        | Software::Emms => x87::select(software, d, op)?,
    })
}

impl Cpu {
    /// x87, SSE and AVX state.
    #[inline(always)]
    pub(crate) fn vector_state(&mut self) -> &mut VectorState {
        &mut self.state().vector
    }

    /// May an instruction of this class execute? `None`: `stop` holds the fault.
    #[inline(always)]
    fn vector_ready(&mut self, class: Class) -> Option<()> {
        let usual = class == Class::Sse && self.cr0 & (cr0::EM | cr0::TS) == 0 && self.cr4 & cr4::OSFXSR != 0;
        if usual { Some(()) } else { self.vector_gate(class) }
    }

    #[inline(never)]
    fn vector_gate(&mut self, class: Class) -> Option<()> {
        // VEX prefixes are not recognized in real-address and virtual-8086 mode.
        if class == Class::Avx && (!self.protected() || self.virtual_8086()) {
            return self.fail(Exception::UD);
        }
        let xcr0 = self.state().xcr0;
        match native::gate(class, self.cr0, self.cr4, xcr0) {
            Ok(()) => Some(()),
            Err(exception) => self.fail(exception),
        }
    }

    /// Takes a pending x87 exception. With CR0.NE clear a PC's interrupt controller would report it, if wired:
    /// here the instruction executes, as with IGNNE# asserted.
    #[inline(always)]
    fn x87_ready(&mut self) -> Option<()> {
        if native::x87::pending(self.vector_state()) && self.cr0 & cr0::NE != 0 {
            return self.fail(Exception::MF);
        }
        Some(())
    }

    /// #GP(0) unless the address is a multiple of `alignment`.
    #[inline(always)]
    fn aligned(&mut self, linear: u64, alignment: u8) -> Option<()> {
        if linear & u64::from(alignment - 1) == 0 { Some(()) } else { self.fail(Exception::gp(0)) }
    }

    /// Reads a memory operand of any size.
    #[inline(always)]
    fn read_operand(&mut self, op: &Op, linear: u64, into: &mut [u8]) -> Option<()> {
        if (linear & 0xfff) as usize + into.len() <= 4096
            && let Some(host) = self.readable_host(linear)
        {
            // SAFETY: `host` is in a mapped page, and so are the bytes after it up to the page's end.
            unsafe { std::ptr::copy_nonoverlapping(host, into.as_mut_ptr(), into.len()) };
            return Some(());
        }
        self.read_bytes(op, linear, into)
    }

    /// Writes a memory operand of any size.
    #[inline(always)]
    fn write_operand(&mut self, op: &Op, linear: u64, bytes: &[u8]) -> Option<()> {
        if (linear & 0xfff) as usize + bytes.len() <= 4096
            && let Some(host) = self.writable_host::<u8>(linear)
        {
            // SAFETY: as in `read_operand`.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) };
            return Some(());
        }
        self.write_bytes(op, linear, bytes)
    }

    /// Checks that an operand can be written, before the state changes.
    #[inline(always)]
    fn writable_operand(&mut self, op: &Op, linear: u64, len: usize) -> Option<()> {
        let quick = (linear & 0xfff) as usize + len <= 4096 && self.writable_host::<u8>(linear).is_some();
        if quick { Some(()) } else { self.probe_write(op, linear, len) }
    }

    /// XMM and YMM registers that the mode has.
    fn vector_registers(&self) -> usize {
        if self.is_64() { 16 } else { 8 }
    }
}

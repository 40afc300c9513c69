//! Forms that use vector registers and memory only: most of what is ever executed. The operand is read in place.

use super::super::operand::{Address, Flat, Segmented};
use super::super::{attempt, next};
use crate::block::{Handler, Op};
use crate::decode::Decoding;
use crate::mmu::Kind;
use crate::native::{Class, Form, MemoryUse, Operand, Registers};
use crate::state::Cpu;

/// The handler: the form's address is in the immediate, its registers in `dst` and `src`.
pub(super) fn select(form: &Form, registers: Registers, d: &Decoding<'_>, op: &mut Op) -> Handler {
    op.imm = std::ptr::from_ref(form) as u64;
    let [a, b, c, e] = registers.vector;
    (op.dst, op.src) = (a | b << 4, c | e << 4);
    let is_vex = form.terms.class == Class::Avx;
    match (form.terms.memory, is_vex, d.flat) {
        (MemoryUse::None, false, _) => without_memory::<false>,
        (MemoryUse::None, true, _) => without_memory::<true>,
        (_, false, true) => load::<Flat, false>,
        (_, true, true) => load::<Flat, true>,
        (_, false, false) => load::<Segmented, false>,
        (_, true, false) => load::<Segmented, true>,
    }
}

const fn class(vex: bool) -> Class {
    if vex { Class::Avx } else { Class::Sse }
}

#[inline(always)]
const fn registers(op: &Op) -> [u8; 4] {
    [op.dst & 15, op.dst >> 4, op.src & 15, op.src >> 4]
}

#[inline(always)]
fn form(op: &Op) -> &Form {
    // SAFETY: `select` made the immediate from a form of `thunks`, which neither moves nor drops one while the
    // processor, and so its blocks, live.
    unsafe { &*(op.imm as *const Form) }
}

unsafe fn without_memory<const VEX: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(VEX) }));
    let state = std::ptr::from_mut(cpu.vector_state());
    // SAFETY: the form is plain and reads no memory; `state` is the processor's own.
    unsafe { form(this).run_plain(registers(this), state, std::ptr::null()) };
    next!(cpu, op)
}

unsafe fn load<A: Address, const VEX: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    attempt!(cpu, op, cpu.vector_ready(const { class(VEX) }));
    let terms = form(this).terms;
    let len = usize::from(terms.memory.reads().unwrap_or(0));
    let linear = attempt!(cpu, op, A::linear(cpu, this, len, Kind::Read));
    attempt!(cpu, op, cpu.aligned(linear, terms.alignment));
    match cpu.readable_host(linear) {
        Some(host) if (linear & 0xfff) as usize + len <= 4096 => {
            let state = std::ptr::from_mut(cpu.vector_state());
            // SAFETY: the form is plain; the operand is in a mapped page, at the offset that `linear` has in its own.
            unsafe { form(this).run_plain(registers(this), state, host) };
        }
        _ => attempt!(cpu, op, cpu.run_plain_slowly(this, linear, len)),
    }
    next!(cpu, op)
}

impl Cpu {
    #[cold]
    #[inline(never)]
    fn run_plain_slowly(&mut self, op: &Op, linear: u64, len: usize) -> Option<()> {
        let mut operand = Operand::default();
        self.read_bytes(op, linear, &mut operand.0[..len])?;
        let state = std::ptr::from_mut(self.vector_state());
        // SAFETY: the form is plain; the operand is in a buffer larger and more aligned than any.
        unsafe { form(op).run_plain(registers(op), state, operand.0.as_ptr()) };
        Some(())
    }
}

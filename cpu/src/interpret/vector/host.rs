//! Instructions that a thunk executes.

use super::super::operand::Address;
use super::{by_address, outlined, plain};
use crate::block::{Handler, Op};
use crate::decode::Decoding;
use crate::flags::Status;
use crate::mmu::Kind;
use crate::native::{Form, FormId, Machine, MemoryUse, Operand, Packed, Raised, Registers, Store};
use crate::state::{CodeSize, Cpu};
use iced_x86::Encoder;
use vmcs12::arch::cr::cr4;
use vmcs12::arch::event::Exception;

/// The handler of a form. Of a plain one the immediate is its address, and `dst` and `src` hold its registers; of
/// the others the immediate holds all.
pub(super) fn select(
    form: &Form,
    id: FormId,
    registers: Registers,
    d: &Decoding<'_>,
    op: &mut Op,
) -> Handler {
    if form.is_plain() && form.terms.memory.writes().is_none() {
        return plain::select(form, registers, d, op);
    }
    op.imm = Packed::new(id, registers).0;
    if form.is_x87() {
        [op.src, op.dst] = opcode_bytes(d);
    }
    match form.terms.memory {
        MemoryUse::None => outlined!(without_memory),
        MemoryUse::Read(_) => by_address!(d, load),
        MemoryUse::Write(_) | MemoryUse::ReadWrite(_) => by_address!(d, store),
    }
}

/// The two bytes that FOP keeps of an x87 instruction: its opcode and ModR/M byte.
fn opcode_bytes(d: &Decoding<'_>) -> [u8; 2] {
    let mut encoder = Encoder::new(match d.size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    });
    if encoder.encode(d.inst, d.inst.ip()).is_err() {
        return [0; 2];
    }
    let bytes = encoder.take_buffer();
    let escape = bytes.windows(2).find(|pair| pair[0] & 0xf8 == 0xd8);
    escape.map_or([0; 2], |pair| [pair[0] & 7, pair[1]])
}

#[inline(never)]
fn without_memory(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.form_ready(op)?;
    let mut operand = Operand::default();
    cpu.execute(op, &mut operand, None)?;
    Some(())
}

#[inline(never)]
fn load<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let terms = cpu.form_ready(op)?;
    let len = usize::from(terms.memory.reads().unwrap_or(0));
    let linear = A::linear(cpu, op, len, Kind::Read)?;
    cpu.aligned(linear, terms.alignment)?;
    let mut operand = Operand::default();
    cpu.read_operand(op, linear, &mut operand.0[..len])?;
    cpu.execute(op, &mut operand, Some(linear))?;
    Some(())
}

#[inline(never)]
fn store<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let terms = cpu.form_ready(op)?;
    let len = usize::from(terms.memory.writes().unwrap_or(0));
    let linear = A::linear(cpu, op, len, Kind::Write)?;
    cpu.aligned(linear, terms.alignment)?;
    cpu.writable_operand(op, linear, len)?;
    let mut operand = Operand::default();
    if terms.memory.reads().is_some() {
        cpu.read_operand(op, linear, &mut operand.0[..len])?;
    }
    if cpu.execute(op, &mut operand, Some(linear))? == Store::Done {
        cpu.write_operand(op, linear, &operand.0[..len])?;
    }
    Some(())
}

impl Cpu {
    #[inline(always)]
    fn form_ready(&mut self, op: &Op) -> Option<crate::native::Terms> {
        let terms = self.thunks.form(Packed(op.imm).form()).terms;
        self.vector_ready(terms.class)?;
        if terms.waits {
            self.x87_ready()?;
        }
        Some(terms)
    }

    /// Executes a form on its operand, which has been read, and whose write cannot fault.
    #[inline(always)]
    fn execute(&mut self, op: &Op, operand: &mut Operand, linear: Option<u64>) -> Option<Store> {
        let packed = Packed(op.imm);
        let form = self.thunks.form(packed.form());
        let uses_flags = form.uses_flags();
        let mut flags = if uses_flags { self.status.bits() } else { 0 };
        // SAFETY: `state` is valid while guest code runs, and nothing else refers to it here.
        let vector = unsafe { &mut (*self.state).vector };
        let general = self.gpr.first_chunk_mut().expect("the sixteen registers come first");
        let mut machine = Machine { general, rflags: &mut flags, operand };
        let outcome = form.run(packed.registers(), vector, &mut machine);
        let is_x87 = form.is_x87();
        match outcome {
            Ok(store) => {
                if uses_flags {
                    self.status = Status::from_bits(flags);
                }
                if is_x87 {
                    self.note_x87(op, linear);
                }
                Some(store)
            }
            Err(Raised::SimdException) => {
                let exception = if self.cr4 & cr4::OSXMMEXCPT != 0 { Exception::XM } else { Exception::UD };
                self.fail(exception)
            }
        }
    }

    /// Notes the last x87 instruction. As CPUID leaf 7 announces of newer processors, FCS and FDS stay 0, and FDP
    /// and FOP change only when an unmasked exception is found.
    fn note_x87(&mut self, op: &Op, linear: Option<u64>) {
        let fip = self.rip_of(op);
        let offset = if linear.is_some() { self.effective_address(op) } else { 0 };
        let [low, modrm] = [op.src, op.dst].map(u16::from);
        let state = self.vector_state();
        state.fip = fip;
        if crate::native::x87::pending(state) {
            state.fop = low << 8 | modrm;
            state.fdp = offset;
        }
    }
}

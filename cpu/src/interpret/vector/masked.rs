//! Masked moves and gathers, element by element, and the instructions that clear registers.

use super::super::operand::{Address, address_mask};
use super::{by_address, outlined};
use crate::block::{Handler, Op};
use crate::decode::Decoding;
use crate::mmu::Kind;
use crate::native::software::{self, Gather, Masked};
use crate::native::{Class, Software, Terms, x87};
use crate::state::{Cpu, ZERO};
use iced_x86::OpKind;
use vmcs12::cpu_state::gpr::RDI;

/// The handler; the class is in the immediate's bits 63:56, the element and operand sizes below.
pub(super) fn select(software: Software, terms: Terms, d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    Some(match software {
        Software::Vzeroupper => outlined!(vzeroupper),
        Software::Vzeroall => outlined!(vzeroall),
        Software::MaskedLoad(masked) => {
            pack(masked, op);
            by_address!(d, masked_load)
        }
        Software::MaskedStore(masked) => {
            pack(masked, op);
            let implied = d.inst.op0_kind() != OpKind::Memory;
            match terms.class {
                Class::Mmx if implied => outlined!(store_at_rdi::<MMX>),
                Class::Avx if implied => outlined!(store_at_rdi::<AVX>),
                _ if implied => outlined!(store_at_rdi::<SSE>),
                _ => by_address!(d, masked_store),
            }
        }
        Software::Gather(gather) => {
            // Destination, mask and index must differ. SDM Vol. 2, "VGATHERDPS/VGATHERDPD".
            if gather.to == gather.mask || gather.to == gather.index || gather.mask == gather.index {
                return None;
            }
            (op.dst, op.src) = (gather.to, gather.mask);
            op.scaled = ZERO as u8;
            let parts = [gather.element, gather.index_element, gather.count, gather.index];
            op.imm = u64::from(u32::from_le_bytes(parts));
            outlined!(run_gather)
        }
        _ => return None,
    })
}

const MMX: u8 = 0;
const SSE: u8 = 1;
const AVX: u8 = 2;

fn pack(masked: Masked, op: &mut Op) {
    (op.dst, op.src) = (masked.data, masked.mask);
    op.imm = u64::from(u32::from_le_bytes([masked.element, masked.bytes, u8::from(masked.mmx), 0]));
}

fn unpack(op: &Op) -> Masked {
    let [element, bytes, mmx, _] = (op.imm as u32).to_le_bytes();
    Masked { data: op.dst, mask: op.src, element, bytes, mmx: mmx != 0 }
}

#[inline(never)]
fn vzeroupper(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::Avx)?;
    let count = cpu.vector_registers();
    software::zero_upper(cpu.vector_state(), count);
    Some(())
}

#[inline(never)]
fn vzeroall(cpu: &mut Cpu, _: &Op) -> Option<()> {
    cpu.vector_ready(Class::Avx)?;
    let count = cpu.vector_registers();
    software::zero_all(cpu.vector_state(), count);
    Some(())
}

#[inline(never)]
fn masked_load<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.vector_ready(Class::Avx)?;
    let masked = unpack(op);
    let (element, mut loaded) = (usize::from(masked.element), [0; 32]);
    let linear = A::linear(cpu, op, usize::from(masked.bytes), Kind::Read)?;
    for at in masked.selected(cpu.vector_state()) {
        let into = &mut loaded[at..at + element];
        cpu.read_operand(op, linear.wrapping_add(at as u64), into)?;
    }
    masked.commit(cpu.vector_state(), &loaded);
    Some(())
}

#[inline(never)]
fn masked_store<A: Address>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.vector_ready(Class::Avx)?;
    let masked = unpack(op);
    let linear = A::linear(cpu, op, usize::from(masked.bytes), Kind::Write)?;
    cpu.store_selected(op, masked, linear)?;
    Some(())
}

/// MASKMOVQ, MASKMOVDQU and VMASKMOVDQU: to DS:rDI, or another segment.
#[inline(never)]
fn store_at_rdi<const CLASS: u8>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let class = match CLASS {
        MMX => Class::Mmx,
        SSE => Class::Sse,
        _ => Class::Avx,
    };
    cpu.vector_ready(class)?;
    if CLASS == MMX {
        cpu.x87_ready()?;
    }
    let masked = unpack(op);
    let offset = cpu.gpr[RDI] & address_mask(op);
    let size = usize::from(masked.bytes);
    let linear = cpu.segmented(op, op.segment, offset, size, Kind::Write)?;
    cpu.store_selected(op, masked, linear)?;
    if CLASS == MMX {
        x87::enter_mmx(cpu.vector_state());
    }
    Some(())
}

#[inline(never)]
fn run_gather(cpu: &mut Cpu, op: &Op) -> Option<()> {
    cpu.vector_ready(Class::Avx)?;
    let [element, index_element, count, index] = (op.imm as u32).to_le_bytes();
    let gather = Gather { to: op.dst, mask: op.src, index, element, index_element, count };
    for i in 0..usize::from(count) {
        if gather.is_selected(cpu.vector_state(), i) {
            cpu.gather_element(op, gather, i)?;
        }
    }
    gather.finish(cpu.vector_state());
    Some(())
}

impl Cpu {
    /// Writes the selected elements; all are probed first.
    fn store_selected(&mut self, op: &Op, masked: Masked, linear: u64) -> Option<()> {
        let (element, data) = (usize::from(masked.element), masked.data(self.vector_state()));
        for at in masked.selected(self.vector_state()) {
            self.writable_operand(op, linear.wrapping_add(at as u64), element)?;
        }
        for at in masked.selected(self.vector_state()) {
            self.write_operand(op, linear.wrapping_add(at as u64), &data[at..at + element])?;
        }
        Some(())
    }

    fn gather_element(&mut self, op: &Op, gather: Gather, i: usize) -> Option<()> {
        let index = gather.index(self.vector_state(), i) as u64;
        let offset = self.effective_address(op).wrapping_add(index << op.scale) & address_mask(op);
        let size = usize::from(gather.element);
        let linear = self.segmented(op, op.segment, offset, size, Kind::Read)?;
        let mut value = [0; 8];
        self.read_operand(op, linear, &mut value[..size])?;
        gather.take(self.vector_state(), i, value);
        Some(())
    }
}

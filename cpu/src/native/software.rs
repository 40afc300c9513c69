//! Instructions that move or clear state, which the core executes in software with this module's parts:
//! the x87 environment, the save areas, masked moves and gathers.

use super::form::{self, MemoryUse, Terms};
use super::gate::Class;
use super::{fxsave, x87};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use vmcs12::cpu_state::VectorState;

/// Operand size of the instructions that store or load the x87 environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum OperandSize {
    Bits16,
    Bits32,
}

impl OperandSize {
    /// The layout, in a mode with selectors or without.
    pub const fn layout(self, protected: bool) -> x87::Layout {
        match (self, protected) {
            (Self::Bits16, false) => x87::Layout::Real16,
            (Self::Bits32, false) => x87::Layout::Real32,
            (Self::Bits16, true) => x87::Layout::Protected16,
            (Self::Bits32, true) => x87::Layout::Protected32,
        }
    }
}

/// Which of the XSAVE instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Save {
    Xsave,
    Xsaveopt,
    Xsavec,
    Xsaves,
}

/// XRSTOR or XRSTORS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Restore {
    Xrstor,
    Xrstors,
}

/// A load or store of the elements whose mask element has its highest bit set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Masked {
    /// The register loaded or stored.
    pub data: u8,
    /// The register with the mask.
    pub mask: u8,
    /// Bytes of an element: 1, 4 or 8.
    pub element: u8,
    /// Bytes of the operand: 8, 16 or 32.
    pub bytes: u8,
    /// Data and mask are MMX registers.
    pub mmx: bool,
}

/// A gather: element i comes from base + index[i] × scale + displacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gather {
    /// Destination; also supplies the elements that the mask leaves.
    pub to: u8,
    /// The register with the mask, cleared element by element.
    pub mask: u8,
    /// The index register.
    pub index: u8,
    /// Bytes of an element, 4 or 8.
    pub element: u8,
    /// Bytes of an index, 4 or 8.
    pub index_element: u8,
    /// How many elements.
    pub count: u8,
}

/// An instruction that is executed in software.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the manual's own names")]
pub enum Software {
    Fwait,
    Fninit,
    Fnclex,
    /// Prefetches and fences; FNENI, FNDISI and FNSETPM, without effect since the 80387.
    Nothing,
    Fldcw,
    Fnstcw,
    FnstswMemory,
    FnstswAx,
    Fldenv(OperandSize),
    Fnstenv(OperandSize),
    Frstor(OperandSize),
    Fnsave(OperandSize),
    Emms,
    Fxsave(fxsave::PointerWidth),
    Fxrstor(fxsave::PointerWidth),
    Xsave(Save, fxsave::PointerWidth),
    Xrstor(Restore, fxsave::PointerWidth),
    Ldmxcsr,
    Stmxcsr,
    Vzeroupper,
    Vzeroall,
    MaskedLoad(Masked),
    MaskedStore(Masked),
    Gather(Gather),
}

impl Software {
    /// The software instruction that this is, if it is one.
    pub fn of(inst: &Instruction) -> Option<Self> {
        use fxsave::PointerWidth::{Flat, Selectors};
        Some(match inst.code() {
            Code::Wait => Self::Fwait,
            Code::Fninit => Self::Fninit,
            Code::Fnclex => Self::Fnclex,
            Code::Fneni | Code::Fndisi | Code::Fnsetpm => Self::Nothing,
            code if HINTS.contains(&code.mnemonic()) => Self::Nothing,
            Code::Fldcw_m2byte => Self::Fldcw,
            Code::Fnstcw_m2byte => Self::Fnstcw,
            Code::Fnstsw_m2byte => Self::FnstswMemory,
            Code::Fnstsw_AX => Self::FnstswAx,
            Code::Fldenv_m14byte => Self::Fldenv(OperandSize::Bits16),
            Code::Fldenv_m28byte => Self::Fldenv(OperandSize::Bits32),
            Code::Fnstenv_m14byte => Self::Fnstenv(OperandSize::Bits16),
            Code::Fnstenv_m28byte => Self::Fnstenv(OperandSize::Bits32),
            Code::Frstor_m94byte => Self::Frstor(OperandSize::Bits16),
            Code::Frstor_m108byte => Self::Frstor(OperandSize::Bits32),
            Code::Fnsave_m94byte => Self::Fnsave(OperandSize::Bits16),
            Code::Fnsave_m108byte => Self::Fnsave(OperandSize::Bits32),
            Code::Emms => Self::Emms,
            Code::Fxsave_m512byte => Self::Fxsave(Selectors),
            Code::Fxsave64_m512byte => Self::Fxsave(Flat),
            Code::Fxrstor_m512byte => Self::Fxrstor(Selectors),
            Code::Fxrstor64_m512byte => Self::Fxrstor(Flat),
            Code::Xsave_mem => Self::Xsave(Save::Xsave, Selectors),
            Code::Xsave64_mem => Self::Xsave(Save::Xsave, Flat),
            Code::Xsaveopt_mem => Self::Xsave(Save::Xsaveopt, Selectors),
            Code::Xsaveopt64_mem => Self::Xsave(Save::Xsaveopt, Flat),
            Code::Xsavec_mem => Self::Xsave(Save::Xsavec, Selectors),
            Code::Xsavec64_mem => Self::Xsave(Save::Xsavec, Flat),
            Code::Xsaves_mem => Self::Xsave(Save::Xsaves, Selectors),
            Code::Xsaves64_mem => Self::Xsave(Save::Xsaves, Flat),
            Code::Xrstor_mem => Self::Xrstor(Restore::Xrstor, Selectors),
            Code::Xrstor64_mem => Self::Xrstor(Restore::Xrstor, Flat),
            Code::Xrstors_mem => Self::Xrstor(Restore::Xrstors, Selectors),
            Code::Xrstors64_mem => Self::Xrstor(Restore::Xrstors, Flat),
            Code::Ldmxcsr_m32 | Code::VEX_Vldmxcsr_m32 => Self::Ldmxcsr,
            Code::Stmxcsr_m32 | Code::VEX_Vstmxcsr_m32 => Self::Stmxcsr,
            Code::VEX_Vzeroupper => Self::Vzeroupper,
            Code::VEX_Vzeroall => Self::Vzeroall,
            _ => return masked(inst),
        })
    }

    /// What the core checks before it; `None` if memory is touched in another way than by one operand.
    pub(crate) fn terms(self, inst: &Instruction) -> Terms {
        let class = match self {
            Self::Fwait => Class::Wait,
            Self::Xsave(..) | Self::Xrstor(..) => Class::Xsave,
            Self::Fxsave(_) | Self::Fxrstor(_) => Class::X87,
            Self::Emms => Class::Mmx,
            Self::Ldmxcsr | Self::Stmxcsr if form::is_legacy(inst.code()) => Class::Sse,
            _ => form::class(inst),
        };
        let alignment = match self {
            Self::Xsave(..) | Self::Xrstor(..) => 64,
            Self::Fxsave(_) | Self::Fxrstor(_) => 16,
            _ => 1,
        };
        let memory = if self == Self::Nothing { MemoryUse::None } else { form::memory_use(inst) };
        Terms { class, waits: self.waits(), memory, alignment }
    }

    /// Does it take a pending x87 exception first?
    fn waits(self) -> bool {
        match self {
            Self::Fwait | Self::Fldcw | Self::Fldenv(_) | Self::Frstor(_) | Self::Emms => true,
            Self::MaskedStore(masked) => masked.mmx,
            _ => false,
        }
    }
}

/// Instructions that order or prefetch, of which a processor in software has no need.
const HINTS: &[Mnemonic] = &[
    Mnemonic::Prefetchnta,
    Mnemonic::Prefetcht0,
    Mnemonic::Prefetcht1,
    Mnemonic::Prefetcht2,
    Mnemonic::Lfence,
    Mnemonic::Mfence,
    Mnemonic::Sfence,
];

/// Masked moves and gathers by mnemonic: bytes of a data element, and of an index.
#[rustfmt::skip]
const MASKED: &[(Mnemonic, u8)] = &[
    (Mnemonic::Maskmovq,    1), (Mnemonic::Maskmovdqu,  1), (Mnemonic::Vmaskmovdqu, 1),
    (Mnemonic::Vmaskmovps,  4), (Mnemonic::Vmaskmovpd,  8),
    (Mnemonic::Vpmaskmovd,  4), (Mnemonic::Vpmaskmovq,  8),
];
#[rustfmt::skip]
const GATHERS: &[(Mnemonic, u8, u8)] = &[
    // mnemonic              element  index
    (Mnemonic::Vpgatherdd,   4,       4),
    (Mnemonic::Vpgatherqd,   4,       8),
    (Mnemonic::Vpgatherdq,   8,       4),
    (Mnemonic::Vpgatherqq,   8,       8),
    (Mnemonic::Vgatherdps,   4,       4),
    (Mnemonic::Vgatherqps,   4,       8),
    (Mnemonic::Vgatherdpd,   8,       4),
    (Mnemonic::Vgatherqpd,   8,       8),
];

fn masked(inst: &Instruction) -> Option<Software> {
    if let Some(&(_, element)) = MASKED.iter().find(|(mnemonic, _)| *mnemonic == inst.mnemonic()) {
        return Some(masked_move(inst, element));
    }
    let &(_, element, index_element) = GATHERS.iter().find(|(mnemonic, ..)| *mnemonic == inst.mnemonic())?;
    let index = inst.memory_index();
    let elements = |register: Register, bytes: u8| register.size() as u8 / bytes;
    Some(Software::Gather(Gather {
        to: inst.op0_register().number() as u8,
        mask: inst.op2_register().number() as u8,
        index: index.number() as u8,
        element,
        index_element,
        count: elements(inst.op0_register(), element).min(elements(index, index_element)),
    }))
}

fn masked_move(inst: &Instruction, element: u8) -> Software {
    let number = |op| inst.op_register(op).number() as u8;
    let shape = |data: u32, mask: u32| Masked {
        data: number(data),
        mask: number(mask),
        element,
        bytes: inst.op_register(mask).size() as u8,
        mmx: inst.op_register(mask).is_mm(),
    };
    match inst.op0_kind() {
        OpKind::Register => Software::MaskedLoad(shape(0, 1)),
        OpKind::Memory => Software::MaskedStore(shape(2, 1)),
        // MASKMOVQ and MASKMOVDQU, to DS:rDI: the first register is the data.
        _ => Software::MaskedStore(shape(1, 2)),
    }
}

impl Masked {
    /// The data register's bytes.
    pub fn data(self, state: &VectorState) -> [u8; 32] {
        self.register(state, self.data)
    }

    /// The offset of each selected element.
    pub fn selected(self, state: &VectorState) -> impl Iterator<Item = usize> + use<> {
        let mask = self.register(state, self.mask);
        let element = usize::from(self.element);
        (0..usize::from(self.bytes)).step_by(element).filter(move |at| mask[at + element - 1] & 0x80 != 0)
    }

    /// Completes a masked load: the elements not loaded, and the rest of the register, are 0.
    pub fn commit(self, state: &mut VectorState, loaded: &[u8; 32]) {
        state.ymm[usize::from(self.data)] = *loaded;
    }

    fn register(self, state: &VectorState, number: u8) -> [u8; 32] {
        let number = usize::from(number);
        if !self.mmx {
            return state.ymm[number];
        }
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&state.st[(number + 8 - x87::top(state)) % 8][..8]);
        bytes
    }
}

impl Gather {
    /// Is element `i` to be gathered?
    pub fn is_selected(self, state: &VectorState, i: usize) -> bool {
        let element = usize::from(self.element);
        state.ymm[usize::from(self.mask)][(i + 1) * element - 1] & 0x80 != 0
    }

    /// The sign-extended index of element `i`.
    pub fn index(self, state: &VectorState, i: usize) -> i64 {
        let register = &state.ymm[usize::from(self.index)];
        if self.index_element == 4 {
            i32::from_le_bytes(std::array::from_fn(|byte| register[4 * i + byte])).into()
        } else {
            i64::from_le_bytes(std::array::from_fn(|byte| register[8 * i + byte]))
        }
    }

    /// Takes element `i` from the start of `value`, and clears its mask: so far a fault leaves the gather.
    pub fn take(self, state: &mut VectorState, i: usize, value: [u8; 8]) {
        let element = usize::from(self.element);
        let at = i * element..(i + 1) * element;
        state.ymm[usize::from(self.to)][at.clone()].copy_from_slice(&value[..element]);
        state.ymm[usize::from(self.mask)][at].fill(0);
    }

    /// The end of the gather: the mask and the destination's upper bytes are 0.
    pub fn finish(self, state: &mut VectorState) {
        state.ymm[usize::from(self.mask)] = [0; 32];
        let used = usize::from(self.count) * usize::from(self.element);
        state.ymm[usize::from(self.to)][used..].fill(0);
    }
}

/// Clears the upper halves of YMM0–7, or with 16, of YMM0–15. SDM Vol. 2, "VZEROUPPER".
pub fn zero_upper(state: &mut VectorState, count: usize) {
    for register in state.ymm.iter_mut().take(count) {
        register[16..].fill(0);
    }
}

/// VZEROALL.
pub fn zero_all(state: &mut VectorState, count: usize) {
    state.ymm.iter_mut().take(count).for_each(|register| *register = [0; 32]);
}

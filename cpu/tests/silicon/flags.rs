//! What the manual leaves undefined. SDM Vol. 2, each instruction's "Flags Affected".

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use vmcs12::arch::rflags::{AF, CF, OF, PF, SF, ZF};

/// The flags that an instruction leaves undefined whatever its operands.
#[rustfmt::skip]
pub fn undefined(mnemonic: Mnemonic) -> u64 {
    use Mnemonic as M;
    match mnemonic {
        // mnemonic                                       undefined
        M::And | M::Or | M::Xor | M::Test | M::Andn    => AF | if mnemonic == M::Andn { PF } else { 0 },
        M::Bsf | M::Bsr                                => CF | OF | SF | AF | PF,
        M::Bt | M::Bts | M::Btr | M::Btc               => OF | SF | AF | PF,
        M::Tzcnt | M::Lzcnt                            => OF | SF | AF | PF,
        M::Bextr                                       => AF | SF | PF,
        M::Blsi | M::Blsr | M::Blsmsk | M::Bzhi        => AF | PF,
        M::Mul | M::Imul                               => SF | ZF | AF | PF,
        M::Div | M::Idiv                               => CF | OF | SF | ZF | AF | PF,
        M::Aaa | M::Aas                                => OF | SF | ZF | PF,
        M::Daa | M::Das                                => OF,
        M::Aam | M::Aad                                => OF | AF | CF,
        _ => 0,
    }
}

/// Is it a shift or rotate whose flags depend on the count?
pub fn is_shift(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    is_rotate(mnemonic) || matches!(mnemonic, M::Shl | M::Sal | M::Shr | M::Sar | M::Shld | M::Shrd)
}

/// Is it a rotate, which leaves SF, ZF, AF and PF alone?
pub fn is_rotate(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(mnemonic, M::Rol | M::Ror | M::Rcl | M::Rcr)
}

/// Width in bits of the first operand.
fn width(inst: &Instruction) -> u64 {
    match inst.op0_kind() {
        OpKind::Register => inst.op0_register().size() as u64 * 8,
        _ => inst.memory_size().size() as u64 * 8,
    }
}

/// The masked count of a shift, if RCX is `rcx`.
pub fn count(inst: &Instruction, rcx: u64) -> u64 {
    let last = inst.op_count() - 1;
    let count = match inst.op_kind(last) {
        OpKind::Register if inst.op_register(last) == Register::CL => rcx,
        _ => inst.immediate(last),
    };
    count & if width(inst) == 64 { 63 } else { 31 }
}

/// The flags that a shift leaves undefined with this count.
pub fn undefined_by_count(inst: &Instruction, count: u64) -> u64 {
    use Mnemonic as M;
    if count == 0 {
        return 0;
    }
    let several = if count == 1 { 0 } else { OF };
    match inst.mnemonic() {
        mnemonic if is_rotate(mnemonic) => several,
        M::Sar => AF | several,
        M::Shld | M::Shrd if count > width(inst) => CF | OF | SF | ZF | AF | PF,
        M::Shld | M::Shrd => AF | several,
        _ if count >= width(inst) => AF | CF | several,
        _ => AF | several,
    }
}

/// Is the result itself undefined, with this RCX: a double shift by more than its width?
pub fn result_is_undefined(inst: &Instruction, rcx: u64) -> bool {
    matches!(inst.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && count(inst, rcx) > width(inst)
}

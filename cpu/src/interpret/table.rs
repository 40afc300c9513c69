//! The integer instructions: mnemonic → handler. Operand forms and widths come from the decoder.

use super::arith::{
    self, Adc, Add, And, Binary, Cmp, Cmpxchg, Dec, Inc, Locked, Neg, Not, One, Or, Plain, Quiet, Sbb, Sub,
    Test, Xadd, Xchg, Xor,
};
use super::bit::{self, Lowest, Of, Three};
use super::moves::{self, Cmov, Movbe, Set};
use super::multiply::{Div, Idiv, Imul1, Imul2, Imul3, Mul, Mulx, decimal};
use super::operand::extra;
use super::shift::{By, Double, Flagless, Rcl, Rcr, Rol, Ror, Sar, Shl, Shr};
use super::{branch, shift, stack, string};
use crate::block::{Handler, Op};
use crate::decode::{Decoding, Selected};
use crate::state::lacks;
use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};

type Select = fn(&Decoding<'_>, &mut Op) -> Option<Handler>;

/// May an instruction have a LOCK prefix (with a memory destination)?
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    Never,
    May,
}

fn alu<A: arith::Alu>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if op.extra & extra::LOCK != 0 {
        arith::binary::<Locked<A>>(d, op)
    } else {
        arith::binary::<Plain<A>>(d, op)
    }
}

fn one<F: One>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if op.extra & extra::LOCK != 0 {
        arith::unary::<Locked<F>>(d, op)
    } else {
        arith::unary::<Plain<F>>(d, op)
    }
}

/// XCHG and CMPXCHG name their operands in either order; the register is the source.
fn exchange<F: Binary>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if d.inst.op0_kind() == OpKind::Register && d.inst.op1_kind() == OpKind::Memory {
        let mut swapped = *d.inst;
        let register = swapped.op0_register();
        swapped.set_op0_kind(OpKind::Memory);
        swapped.set_op1_kind(OpKind::Register);
        swapped.set_op1_register(register);
        return arith::binary::<F>(&Decoding { inst: &swapped, ..*d }, op);
    }
    arith::binary::<F>(d, op)
}

fn double<const LEFT: bool>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if arith::is_immediate(d.inst.op2_kind()) {
        let handler = arith::binary::<Double<LEFT, false>>(d, op);
        op.imm = d.inst.immediate(2);
        return handler;
    }
    arith::binary::<Double<LEFT, true>>(d, op)
}

fn imul(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    match d.inst.op_count() {
        1 => arith::unary::<Imul1>(d, op),
        2 => arith::binary::<Imul2>(d, op),
        _ => {
            let handler = arith::binary::<Imul3>(d, op);
            op.imm = d.inst.immediate(2);
            handler
        }
    }
}

fn bswap(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    op.dst = crate::decode::register_offset(d.inst.op0_register());
    Some(match crate::decode::operand_size(d.inst, 0) {
        2 => moves::bswap::<u16>,
        4 => moves::bswap::<u32>,
        _ => moves::bswap::<u64>,
    })
}

fn with_immediate(d: &Decoding<'_>, op: &mut Op, run: Handler) -> Option<Handler> {
    op.imm = d.inst.immediate(0);
    Some(run)
}

/// One row: how the handler is found, and whether LOCK is allowed.
#[rustfmt::skip]
fn row(mnemonic: Mnemonic) -> Option<(Select, Lock)> {
    use Mnemonic as M;
    use Lock::{May, Never};
    Some(match mnemonic {
        // mnemonic       handler                                     LOCK
        M::Add        => (alu::<Add>,                                 May),
        M::Adc        => (alu::<Adc>,                                 May),
        M::And        => (alu::<And>,                                 May),
        M::Cmp        => (alu::<Cmp>,                                 Never),
        M::Or         => (alu::<Or>,                                  May),
        M::Sbb        => (alu::<Sbb>,                                 May),
        M::Sub        => (alu::<Sub>,                                 May),
        M::Test       => (alu::<Test>,                                Never),
        M::Xor        => (alu::<Xor>,                                 May),
        M::Inc        => (one::<Inc>,                                 May),
        M::Dec        => (one::<Dec>,                                 May),
        M::Neg        => (one::<Neg>,                                 May),
        M::Not        => (one::<Not>,                                 May),
        M::Xadd       => (arith::binary::<Xadd>,                      May),
        M::Xchg       => (exchange::<Xchg>,                           May),
        M::Cmpxchg    => (exchange::<Cmpxchg>,                        May),
        M::Cmpxchg8b  => (|_, _| Some(bit::compare_exchange_pair::<false>), May),
        M::Cmpxchg16b => (|_, _| Some(bit::compare_exchange_pair::<true>),  May),

        M::Mov        => (moves::mov,                                 Never),
        M::Movbe      => (arith::binary::<Movbe>,                     Never),
        M::Movzx      => (moves::extend::<moves::Zero>,               Never),
        M::Movsx      => (moves::extend::<moves::Sign>,               Never),
        M::Movsxd     => (moves::extend::<moves::Sign>,               Never),
        M::Movnti     => (arith::binary::<moves::Mov>,                Never),
        M::Lea        => (moves::lea,                                 Never),
        M::Bswap      => (bswap,                                      Never),
        M::Cbw        => (|_, _| Some(moves::cbw),                    Never),
        M::Cwde       => (|_, _| Some(moves::cwde),                   Never),
        M::Cdqe       => (|_, _| Some(moves::cdqe),                   Never),
        M::Cwd        => (|_, _| Some(moves::cwd),                    Never),
        M::Cdq        => (|_, _| Some(moves::cdq),                    Never),
        M::Cqo        => (|_, _| Some(moves::cqo),                    Never),
        M::Xlatb      => (|_, _| Some(moves::xlat),                   Never),

        M::Shl | M::Sal => (arith::binary::<By<Shl>>,                 Never),
        M::Shr        => (arith::binary::<By<Shr>>,                   Never),
        M::Sar        => (arith::binary::<By<Sar>>,                   Never),
        M::Rol        => (arith::binary::<By<Rol>>,                   Never),
        M::Ror        => (arith::binary::<By<Ror>>,                   Never),
        M::Rcl        => (arith::binary::<By<Rcl>>,                   Never),
        M::Rcr        => (arith::binary::<By<Rcr>>,                   Never),
        M::Shld       => (double::<true>,                             Never),
        M::Shrd       => (double::<false>,                            Never),
        M::Shlx       => (|d, op| bit::three::<Flagless<0>>(d, op, 1, Some(2)), Never),
        M::Shrx       => (|d, op| bit::three::<Flagless<1>>(d, op, 1, Some(2)), Never),
        M::Sarx       => (|d, op| bit::three::<Flagless<2>>(d, op, 1, Some(2)), Never),
        M::Rorx       => (|d, op| bit::three::<Flagless<3>>(d, op, 1, Some(2)), Never),

        M::Mul        => (arith::unary::<Mul>,                        Never),
        M::Imul       => (imul,                                       Never),
        M::Div        => (arith::unary::<Div>,                        Never),
        M::Idiv       => (arith::unary::<Idiv>,                       Never),
        M::Mulx       => (|d, op| bit::three::<Mulx>(d, op, 2, Some(1)), Never),
        M::Daa        => (|_, _| Some(decimal::daa),                  Never),
        M::Das        => (|_, _| Some(decimal::das),                  Never),
        M::Aaa        => (|_, _| Some(decimal::aaa),                  Never),
        M::Aas        => (|_, _| Some(decimal::aas),                  Never),
        M::Aam        => (|d, op| with_immediate(d, op, decimal::aam), Never),
        M::Aad        => (|d, op| with_immediate(d, op, decimal::aad), Never),
        M::Salc       => (|_, _| Some(decimal::salc),                 Never),

        M::Bt         => (bit::test::<0>,                             Never),
        M::Bts        => (bit::test::<1>,                             May),
        M::Btr        => (bit::test::<2>,                             May),
        M::Btc        => (bit::test::<3>,                             May),
        M::Bsf        => (|d, op| bit::three::<Of<bit::Bsf>>(d, op, 1, None), Never),
        M::Bsr        => (|d, op| bit::three::<Of<bit::Bsr>>(d, op, 1, None), Never),
        M::Tzcnt      => (tzcnt,                                      Never),
        M::Lzcnt      => (lzcnt,                                      Never),
        M::Popcnt     => (|d, op| bit::three::<Of<bit::Popcnt>>(d, op, 1, None), Never),
        M::Andn       => (|d, op| bit::three::<Three<0>>(d, op, 2, Some(1)), Never),
        M::Bextr      => (|d, op| bit::three::<Three<1>>(d, op, 1, Some(2)), Never),
        M::Bzhi       => (|d, op| bit::three::<Three<2>>(d, op, 1, Some(2)), Never),
        M::Pdep       => (|d, op| bit::three::<Three<3>>(d, op, 2, Some(1)), Never),
        M::Pext       => (|d, op| bit::three::<Three<4>>(d, op, 2, Some(1)), Never),
        M::Blsr       => (|d, op| bit::three::<Lowest<0>>(d, op, 1, None), Never),
        M::Blsmsk     => (|d, op| bit::three::<Lowest<1>>(d, op, 1, None), Never),
        M::Blsi       => (|d, op| bit::three::<Lowest<2>>(d, op, 1, None), Never),
        M::Crc32      => (bit::select_crc32,                          Never),

        M::Push       => (stack::select_push,                         Never),
        M::Pop        => (stack::select_pop,                          Never),
        M::Pusha | M::Pushad => (stack::select_pusha,                 Never),
        M::Popa | M::Popad   => (stack::select_popa,                  Never),
        M::Enter      => (stack::select_enter,                        Never),
        M::Leave      => (stack::select_leave,                        Never),
        M::Nop        => (|_, _| Some(super::nop),                    Never),
        M::Endbr64 | M::Endbr32 => (|_, _| Some(super::nop),          Never),
        // Without MPX, CET and their like these encodings are what they always were: no operation, no access.
        M::Reservednop | M::Cldemote | M::Prefetchit0 | M::Prefetchit1 | M::Rdsspd | M::Rdsspq
        | M::Bndmk | M::Bndcl | M::Bndcu | M::Bndcn | M::Bndmov | M::Bndldx | M::Bndstx
                      => (|_, _| Some(super::nop),                    Never),
        M::Loopne     => (|d, op| branch::select_count(d, op, 0),     Never),
        M::Loope      => (|d, op| branch::select_count(d, op, 1),     Never),
        M::Loop       => (|d, op| branch::select_count(d, op, 2),     Never),
        M::Jcxz | M::Jecxz | M::Jrcxz => (|d, op| branch::select_count(d, op, 3), Never),
        other => return by_condition(other),
    })
}

fn tzcnt(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    // Without BMI1 the prefix is ignored.
    if d.lacks.has(lacks::BMI1) {
        bit::three::<Of<bit::Bsf>>(d, op, 1, None)
    } else {
        bit::three::<Of<bit::Tzcnt>>(d, op, 1, None)
    }
}

fn lzcnt(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if d.lacks.has(lacks::LZCNT) {
        bit::three::<Of<bit::Bsr>>(d, op, 1, None)
    } else {
        bit::three::<Of<bit::Lzcnt>>(d, op, 1, None)
    }
}

macro_rules! conditions {
    ($mnemonic:expr; $($number:literal $jump:ident $set:ident $cmov:ident;)*) => {
        match $mnemonic {
            $(Mnemonic::$jump => Some((|d, op| branch::select_jcc(d, op, $number), Lock::Never)),
            Mnemonic::$set => Some((arith::unary::<Set<$number>>, Lock::Never)),
            Mnemonic::$cmov => Some((arith::binary::<Cmov<$number>>, Lock::Never)),)*
            _ => None,
        }
    };
}

/// Condition codes by number. SDM Vol. 1, "EFLAGS Condition Codes".
#[rustfmt::skip]
fn by_condition(mnemonic: Mnemonic) -> Option<(Select, Lock)> {
    conditions! { mnemonic;
         0 Jo  Seto  Cmovo;
         1 Jno Setno Cmovno;
         2 Jb  Setb  Cmovb;
         3 Jae Setae Cmovae;
         4 Je  Sete  Cmove;
         5 Jne Setne Cmovne;
         6 Jbe Setbe Cmovbe;
         7 Ja  Seta  Cmova;
         8 Js  Sets  Cmovs;
         9 Jns Setns Cmovns;
        10 Jp  Setp  Cmovp;
        11 Jnp Setnp Cmovnp;
        12 Jl  Setl  Cmovl;
        13 Jge Setge Cmovge;
        14 Jle Setle Cmovle;
        15 Jg  Setg  Cmovg;
    }
}

/// MOV to and from control, debug and segment registers, and PUSH and POP of the latter, are not integer moves.
fn is_system_move(d: &Decoding<'_>) -> bool {
    (0..d.inst.op_count()).any(|i| {
        d.inst.op_kind(i) == OpKind::Register && {
            let register = d.inst.op_register(i);
            register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr()
        }
    })
}

/// The handler of an integer instruction; `None` if it is none.
pub(crate) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    let locked = op.extra & extra::LOCK != 0;
    let jump = match d.inst.mnemonic() {
        Mnemonic::Jmp => branch::select_jmp(d, op),
        Mnemonic::Call => branch::select_call(d, op),
        Mnemonic::Ret => branch::select_ret(d, op),
        _ => None,
    };
    if let Some(run) = jump {
        return Some(Selected::end(if locked { super::undefined } else { run }));
    }
    if is_system_move(d) {
        return None;
    }
    if let Some(selected) = string::select(d, op) {
        return Some(if locked { Selected::end(super::undefined) } else { selected });
    }
    let (choose, lock) = row(d.inst.mnemonic())?;
    if is_lacking(d) {
        return Some(Selected::end(super::undefined));
    }
    if locked
        && (lock == Lock::Never || d.inst.op0_kind() != OpKind::Memory && d.inst.op1_kind() != OpKind::Memory)
    {
        return Some(Selected::end(super::undefined));
    }
    let run = choose(d, op)?;
    let register_only = !has_memory(d.inst) && d.inst.op0_kind() == OpKind::Register;
    let quiet = if register_only { quiet(d.inst.mnemonic()).and_then(|choose| choose(d, op)) } else { None };
    Some(Selected { quiet, ..Selected::next(run) })
}

/// Does the model lack the instruction's extension? LZCNT and TZCNT then decode as BSR and BSF: their rows see to that.
fn is_lacking(d: &Decoding<'_>) -> bool {
    d.lacks.0 != 0
        && d.inst.cpuid_features().iter().any(|feature| match feature {
            CpuidFeature::BMI1 => d.inst.mnemonic() != Mnemonic::Tzcnt && d.lacks.has(lacks::BMI1),
            CpuidFeature::BMI2 => d.lacks.has(lacks::BMI2),
            CpuidFeature::POPCNT => d.lacks.has(lacks::POPCNT),
            CpuidFeature::MOVBE => d.lacks.has(lacks::MOVBE),
            CpuidFeature::CMPXCHG16B => d.lacks.has(lacks::CMPXCHG16B),
            CpuidFeature::SSE4_2 => d.lacks.has(lacks::SSE4_2),
            _ => false,
        })
}

fn has_memory(inst: &Instruction) -> bool {
    (0..inst.op_count())
        .any(|i| !matches!(inst.op_kind(i), OpKind::Register) && !arith::is_immediate(inst.op_kind(i)))
}

/// Instructions on registers alone, which cannot fault, whatever they do with the flags.
pub(crate) fn is_plain(inst: &Instruction) -> bool {
    use Mnemonic::{Bswap, Cbw, Cdq, Cdqe, Cqo, Cwd, Cwde, Lea, Mov, Movsx, Movsxd, Movzx, Nop};
    let registers = (0..inst.op_count()).all(|i| match inst.op_kind(i) {
        OpKind::Register => inst.op_register(i).is_gpr(),
        kind => arith::is_immediate(kind) || inst.mnemonic() == Lea,
    });
    let conditional = inst.condition_code() != iced_x86::ConditionCode::None && !inst.is_jcc_short_or_near();
    registers
        && (conditional
            || matches!(
                inst.mnemonic(),
                Bswap | Cbw | Cdq | Cdqe | Cqo | Cwd | Cwde | Lea | Mov | Movsx | Movsxd | Movzx | Nop
            ))
}

/// A count in CL may be 0, which leaves the flags: only immediate counts are known.
fn shift_quietly<F: shift::Shift>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if arith::is_immediate(d.inst.op1_kind()) { arith::binary::<shift::Quiet<F>>(d, op) } else { None }
}

/// The register forms that leave the status flags alone.
#[rustfmt::skip]
fn quiet(mnemonic: Mnemonic) -> Option<Select> {
    use Mnemonic as M;
    Some(match mnemonic {
        M::Add            => arith::binary::<Quiet<Add>>,
        M::Adc            => arith::binary::<Quiet<Adc>>,
        M::And            => arith::binary::<Quiet<And>>,
        M::Or             => arith::binary::<Quiet<Or>>,
        M::Sbb            => arith::binary::<Quiet<Sbb>>,
        M::Sub            => arith::binary::<Quiet<Sub>>,
        M::Xor            => arith::binary::<Quiet<Xor>>,
        M::Inc            => arith::unary::<Quiet<Inc>>,
        M::Dec            => arith::unary::<Quiet<Dec>>,
        M::Neg            => arith::unary::<Quiet<Neg>>,
        M::Shl | M::Sal   => shift_quietly::<Shl>,
        M::Shr            => shift_quietly::<Shr>,
        M::Sar            => shift_quietly::<Sar>,
        M::Rol            => shift_quietly::<Rol>,
        M::Ror            => shift_quietly::<Ror>,
        _ => return None,
    })
}

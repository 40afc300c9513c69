//! Images that no instruction of 64-bit user mode makes: other layouts, supervisor forms, and PKRU.

use super::oracle::Machine;
use super::random::Random;
use cpu::native::fxsave::{self, PointerWidth};
use cpu::native::software::{Restore, Save};
use cpu::native::x87::{self, Layout};
use cpu::native::xsave::{self, Header, Registers, component};
use vmcs12::cpu_state::VectorState;

const COMPACTED: u64 = 1 << 63;

fn random_state(random: &mut Random) -> VectorState {
    let Machine { vector, .. } = random.machine();
    VectorState { fip: 0x4_5678, fcs: 0x10, fdp: 0x9_abcd, fds: 0x18, fop: 0x123, ..vector }
}

#[test]
fn an_environment_comes_back_from_each_layout() {
    let mut random = Random(1);
    for layout in [Layout::Real16, Layout::Real32, Layout::Protected16, Layout::Protected32] {
        for _ in 0..1000 {
            let before = random_state(&mut random);
            let mut state = before;
            let image = x87::save(&mut state, layout);
            assert_eq!((state.fcw, state.fsw, state.ftw), (0x37f, 0, 0));
            x87::restore(&mut state, layout, &image);
            let same = |s: &VectorState| (s.fcw, s.fsw, s.ftw, s.st);
            assert_eq!(same(&state), same(&before), "{layout:?}");
            // SDM Vol. 1, Figures "Protected Mode x87 FPU State Image" and "Real Mode x87 FPU State Image".
            let (code, data) = (0x4_5678 + 0x100, 0x9_abcd + 0x180);
            let expected = match layout {
                Layout::Real16 | Layout::Real32 => (code, 0, data, 0, 0x123),
                Layout::Protected16 => (0x5678, 0x10, 0xabcd, 0x18, 0),
                Layout::Protected32 => (0x4_5678, 0x10, 0x9_abcd, 0x18, 0x123),
            };
            assert_eq!((state.fip, state.fcs, state.fdp, state.fds, state.fop), expected, "{layout:?}");
        }
    }
}

#[test]
fn fxsave_with_selectors_keeps_32_bits_of_each_pointer() {
    let before = VectorState { fip: 0x1_2345_6789, fdp: 0x2_3456_789a, ..random_state(&mut Random(2)) };
    let mut image = [0; fxsave::LEN];
    fxsave::put_x87(&before, PointerWidth::Selectors, &mut image);
    let mut after = VectorState::default();
    fxsave::get_x87(&mut after, PointerWidth::Selectors, &image);
    assert_eq!((after.fip, after.fcs, after.fdp, after.fds), (0x2345_6789, 0x10, 0x3456_789a, 0x18));
    fxsave::put_x87(&before, PointerWidth::Flat, &mut image);
    fxsave::get_x87(&mut after, PointerWidth::Flat, &image);
    assert_eq!((after.fip, after.fcs, after.fdp, after.fds), (before.fip, 0, before.fdp, 0));
}

#[test]
fn every_set_of_components_comes_back_from_both_formats() {
    let mut random = Random(3);
    let sets = (0..16).map(|bits| (bits & 7) | ((bits >> 3) * component::PKRU));
    for (requested, save) in
        sets.flat_map(|set| [(set, Save::Xsave), (set, Save::Xsavec), (set, Save::Xsaves)])
    {
        let before = random_state(&mut random);
        let registers = Registers { vector: &before, pkru: 0x5555_aaaa, count: 16 };
        let area = xsave::save(save, PointerWidth::Flat, requested, 0, registers);
        let header = area.bytes[512..576].try_into().expect("64 bytes");
        let restore = if save == Save::Xsaves { Restore::Xrstors } else { Restore::Xrstor };
        let header = Header::check(restore, header, component::ALL).expect("a good header");
        let mut after = VectorState::default();
        let pkru =
            header.restore(PointerWidth::Flat, requested, &area.bytes, &mut after, 16).expect("a good MXCSR");
        assert_eq!(pkru, (requested & component::PKRU != 0).then_some(0x5555_aaaa));
        let initial = VectorState::default();
        let halves = |s: &VectorState, upper: usize| s.ymm.map(|ymm| ymm.as_chunks::<16>().0[upper]);
        let from = |bit| if requested & bit != 0 { &before } else { &initial };
        assert_eq!(after.st, from(component::X87).st);
        assert_eq!(halves(&after, 0), halves(from(component::SSE), 0));
        assert_eq!(halves(&after, 1), halves(from(component::AVX), 1));
        let len = if save == Save::Xsave {
            xsave::standard_len(requested)
        } else {
            xsave::compacted_len(requested)
        };
        assert!(area.ranges.iter().all(|range| range.end <= len), "{save:?} writes past {len}");
    }
}

#[test]
fn components_in_their_initial_state_are_not_written_by_the_optimizing_forms() {
    let initial = VectorState { fcw: 0x37f, ftw: 0, ..VectorState::default() };
    let registers = Registers { vector: &initial, pkru: 0, count: 16 };
    assert_eq!(xsave::in_use(registers), 0);
    for (save, ranges) in [(Save::Xsavec, vec![512..520, 520..528]), (Save::Xsaveopt, vec![24..32, 512..520])]
    {
        let area = xsave::save(save, PointerWidth::Flat, component::ALL, 0, registers);
        assert_eq!(area.ranges, ranges);
        assert_eq!(area.bytes[512..520], [0; 8]);
    }
    // XSAVE keeps the bits of components that it was not asked for.
    let area = xsave::save(Save::Xsave, PointerWidth::Flat, component::SSE, component::PKRU | 3, registers);
    assert_eq!(area.bytes[512..520], (component::PKRU | 1).to_le_bytes());
    // An MXCSR that differs makes SSE state in use, but only in the compacted format.
    let changed = VectorState { mxcsr: 0x1fa0, ..initial };
    let registers = Registers { vector: &changed, pkru: 0, count: 16 };
    let area = xsave::save(Save::Xsavec, PointerWidth::Flat, component::ALL, 0, registers);
    assert_eq!(area.bytes[512], 2);
}

#[test]
fn headers_are_checked() {
    let check = |restore, words: [u64; 3], enabled| {
        let mut bytes = [0; 64];
        for (at, word) in bytes.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        Header::check(restore, &bytes, enabled).is_ok()
    };
    use Restore::{Xrstor, Xrstors};
    for (restore, words, good) in [
        (Xrstor, [7, 0, 0], true),
        (Xrstor, [8, 0, 0], false),
        (Xrstor, [7, 1, 0], false),
        (Xrstor, [7, 0, 1], false),
        (Xrstor, [3, COMPACTED | 7, 0], true),
        (Xrstor, [3, COMPACTED | 1, 0], false),
        (Xrstor, [3, COMPACTED | 0xf, 0], false),
        (Xrstor, [3, COMPACTED | 7, 1], false),
        (Xrstors, [3, COMPACTED | 7, 0], true),
        (Xrstors, [3, 0, 0], false),
    ] {
        assert_eq!(check(restore, words, 7), good, "{restore:?} {words:x?}");
    }
}

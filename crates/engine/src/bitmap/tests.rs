use proptest::prelude::*;

use super::*;

/// Two pages and a bit: 70 000 blocks, the last one short.
const CAPACITY: Sector = Sector(70_000 * 8 - 3);
const BITS: u64 = 70_000;

/// One of the pages as the disk would get it.
fn image(bitmap: &mut Bitmap, page: usize) -> Box<[u8; PAGE_BYTES]> {
    let mut image = Box::new([0xEE; PAGE_BYTES]);
    assert!(bitmap.take_page(page, &mut image));
    image
}

#[test]
fn a_device_of_16_tib_costs_no_memory_until_bits_are_set() {
    // Reading all of it would commit nothing, writing would: 512 MiB. What can be seen here is that it works at all
    // and that a search is not a walk through every word.
    let mut bitmap = Bitmap::new(Sector(1 << 35));
    assert_eq!((bitmap.bits(), bitmap.page_count()), (1 << 32, 1 << 17));
    assert_eq!(bitmap.find_next_set(BlockNumber(0)), None);
    let last = (1 << 32) - 1;
    assert_eq!(bitmap.set_range(last..=u64::MAX), 1);
    assert_eq!(bitmap.find_next_set(BlockNumber(0)), Some(BlockNumber(last)));
    assert_eq!(bitmap.find_next_clear(BlockNumber(last)), None);
    assert_eq!(bitmap.next_changed_page(0), Some((1 << 17) - 1));
    assert_eq!(bitmap.clear_range(0..=u64::MAX), 1);
    assert_eq!(bitmap.set_count(), 0);
}

#[test]
fn nothing_goes_beyond_the_end() {
    let mut bitmap = Bitmap::new(CAPACITY);
    assert_eq!(bitmap.set_range(BITS - 1..=BITS + 500), 1);
    assert_eq!(bitmap.set_range(BITS..=BITS + 500), 0);
    assert_eq!(bitmap.merge_range(BITS - 2..=u64::MAX), 1);
    assert_eq!(bitmap.merge_words(bitmap.word_count() - 1, [u64::MAX, u64::MAX]), BITS % 64 - 2);
    bitmap.load(bitmap.word_count() * 8 - 8, &[0xFF; 64]);
    assert_eq!(bitmap.set_count(), BITS % 64);
    assert_eq!(bitmap.set_count_in(ResyncExtent(u32::MAX)), 0);
    let empty = Bitmap::new(Sector(0));
    assert_eq!((empty.bits(), empty.page_count(), empty.words(0, 10).len()), (0, 0, 0));
    assert_eq!(empty.find_next_set(BlockNumber(0)), None);
}

#[test]
fn a_full_last_word_is_counted() {
    // The original's recount loses the last 64 bits here (metadata spec 6.7).
    let mut bitmap = Bitmap::new(Sector(128 * 8));
    bitmap.load(0, &[0xFF; PAGE_BYTES]);
    assert_eq!(bitmap.set_count(), 128);
    bitmap.resize(Sector(64 * 8), false);
    assert_eq!(bitmap.set_count(), 64);
}

#[test]
fn padding_on_disk_is_zero() {
    let mut bitmap = Bitmap::new(Sector(70 * 8));
    bitmap.load(0, &[0xFF; PAGE_BYTES]);
    assert_eq!(bitmap.changed_page_count(), 0, "what comes from the disk need not go back");
    let image = image(&mut bitmap, 0);
    assert_eq!(image[..8], [0xFF; 8]);
    assert_eq!(image[8], 0x3F);
    assert!(image[9..].iter().all(|byte| *byte == 0));
}

#[test]
fn bits_lie_on_disk_with_the_lowest_first() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(9..=9);
    bitmap.set_range(32768 + 64..=32768 + 64);
    assert_eq!(image(&mut bitmap, 0)[1], 2);
    assert_eq!(image(&mut bitmap, 1)[8], 1);
}

#[test]
fn setting_needs_a_write_and_the_rest_is_lazy() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(5..=5);
    bitmap.merge_range(40_000..=40_001);
    assert_eq!(bitmap.page_state(0), PageState { need_write: true, ..PageState::default() });
    assert_eq!(bitmap.page_state(1), PageState { lazy: true, ..PageState::default() });
    bitmap.set_range(40_000..=40_001);
    assert!(!bitmap.page_state(1).need_write, "no bit was clear");
    bitmap.clear_range(69_000..=69_999);
    assert!(!bitmap.page_changed(2), "no bit was set");
    assert_eq!(bitmap.changed_pages(0).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(bitmap.changed_pages(1).collect::<Vec<_>>(), [1]);
    image(&mut bitmap, 0);
    bitmap.clear_range(5..=5);
    assert_eq!(bitmap.page_state(0), PageState { lazy: true, writing: true, ..PageState::default() });
}

#[test]
fn a_change_during_a_write_marks_the_page_again() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(5..=5);
    image(&mut bitmap, 0);
    assert_eq!((bitmap.changed_page_count(), bitmap.writes_in_flight()), (0, 1));
    bitmap.set_range(6..=6);
    assert!(bitmap.page_changed(0));
    assert!(!bitmap.take_page(0, &mut [0; PAGE_BYTES]), "two writes of a page must not race");
    bitmap.page_written(0);
    assert_eq!(image(&mut bitmap, 0)[0], 0x60);
    bitmap.page_written(0);
    assert_eq!((bitmap.changed_page_count(), bitmap.writes_in_flight()), (0, 0));
}

#[test]
fn a_failed_write_leaves_the_page_changed() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(5..=5);
    image(&mut bitmap, 0);
    bitmap.mark_page_unwritten(0);
    assert_eq!(bitmap.page_state(0), PageState { need_write: true, ..PageState::default() });
}

#[test]
fn a_hint_waits_for_a_write_that_is_already_under_way() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(5..=5);
    image(&mut bitmap, 0);
    bitmap.hint_page(0);
    assert!(!bitmap.page_changed(0));
    assert!(!bitmap.hints_settled());
    assert_eq!(bitmap.next_hinted_page(), None, "nothing new to write");
    bitmap.page_written(0);
    assert!(bitmap.hints_settled());
}

#[test]
fn a_hint_on_a_page_changed_during_a_write_waits_for_the_next_write() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(5..=5);
    image(&mut bitmap, 0);
    bitmap.set_range(6..=6);
    bitmap.hint_page(0);
    bitmap.hint_page(0);
    bitmap.hint_page(1);
    bitmap.hint_page(99);
    assert_eq!(bitmap.next_hinted_page(), None);
    bitmap.page_written(0);
    assert!(!bitmap.hints_settled());
    assert_eq!(bitmap.next_hinted_page(), Some(0));
    assert_eq!(image(&mut bitmap, 0)[0], 0x60);
    assert_eq!(bitmap.next_hinted_page(), None);
    // A later change is no business of the transaction.
    bitmap.set_range(7..=7);
    bitmap.page_written(0);
    assert!(bitmap.hints_settled());
    assert!(bitmap.page_changed(0));
}

#[test]
fn a_hint_survives_a_failed_write() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(5..=5);
    bitmap.hint_page(0);
    image(&mut bitmap, 0);
    bitmap.mark_page_unwritten(0);
    assert!(!bitmap.hints_settled());
    assert_eq!(bitmap.next_hinted_page(), Some(0));
    bitmap.clear_hints();
    assert!(bitmap.hints_settled() && !bitmap.page_state(0).hinted);
}

#[test]
fn all_bits_at_once_have_every_page_written() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_all();
    assert_eq!((bitmap.set_count(), bitmap.changed_page_count()), (BITS, 3));
    assert_eq!(bitmap.find_next_clear(BlockNumber(0)), None);
    for page in 0..3 {
        image(&mut bitmap, page);
        bitmap.page_written(page);
    }
    bitmap.clear_all();
    assert_eq!((bitmap.set_count(), bitmap.changed_page_count()), (0, 3));
    assert_eq!(bitmap.find_next_set(BlockNumber(0)), None);
    assert!(image(&mut bitmap, 2).iter().all(|byte| *byte == 0));
}

#[test]
fn growth_marks_new_blocks_and_the_one_that_was_short() {
    let mut bitmap = Bitmap::new(CAPACITY);
    bitmap.set_range(3..=3);
    image(&mut bitmap, 0);
    bitmap.page_written(0);
    bitmap.resize(Sector(200_000 * 8), true);
    assert_eq!(bitmap.set_count(), 1 + 200_000 - BITS + 1);
    assert!(bitmap.any_set(BITS - 1..=BITS - 1) && !bitmap.any_set(4..=BITS - 2));
    assert_eq!(bitmap.changed_pages(0).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);

    let mut clean = Bitmap::new(CAPACITY);
    clean.resize(Sector(200_000 * 8), false);
    assert_eq!((clean.set_count(), clean.changed_page_count()), (0, 5));
}

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u64),
    Clear(u64, u64),
    Merge(u64, Vec<u64>),
    Load(u64, Vec<u64>),
    SetAll,
    ClearAll,
    Resize(u64, bool),
    Take(usize),
    Written(usize),
    Failed(usize),
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![0..3u64, 0..200u64, 0..80_000u64]
}

fn step() -> impl Strategy<Value = Step> {
    let words = proptest::collection::vec(prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 0..20);
    prop_oneof![
        8 => (0..80_000u64, length()).prop_map(|(first, length)| Step::Set(first, length)),
        8 => (0..80_000u64, length()).prop_map(|(first, length)| Step::Clear(first, length)),
        4 => (0..1200u64, words.clone()).prop_map(|(first, words)| Step::Merge(first, words)),
        2 => (0..1200u64, words).prop_map(|(first, words)| Step::Load(first, words)),
        1 => Just(Step::SetAll),
        1 => Just(Step::ClearAll),
        2 => (0..80_000u64 * 8, any::<bool>()).prop_map(|(capacity, set)| Step::Resize(capacity, set)),
        4 => (0..3usize).prop_map(Step::Take),
        4 => (0..3usize).prop_map(Step::Written),
        1 => (0..3usize).prop_map(Step::Failed),
    ]
}

/// One entry per bit; what is on disk, and what is on its way there.
struct Model {
    capacity: u64,
    bits: Vec<bool>,
    disk: Vec<Option<Vec<u8>>>,
    in_flight: Vec<Option<Vec<u8>>>,
}

impl Model {
    fn page(&self, page: usize) -> Vec<u8> {
        let mut image = vec![0; PAGE_BYTES];
        for (bit, _) in self.bits.iter().enumerate().skip(page * 32768).take(32768).filter(|(_, set)| **set) {
            image[bit / 8 % PAGE_BYTES] |= 1 << (bit % 8);
        }
        image
    }

    fn change(&mut self, first: u64, end: u64, value: bool) -> u64 {
        let mut changed = 0;
        for bit in first..end.min(self.bits.len() as u64) {
            changed += u64::from(self.bits[bit as usize] != value);
            self.bits[bit as usize] = value;
        }
        changed
    }

    fn merge(&mut self, first: u64, words: &[u64]) -> u64 {
        let mut changed = 0;
        for (index, word) in words.iter().enumerate() {
            for bit in (0..64).filter(|bit| word >> bit & 1 == 1) {
                let bit = (first + index as u64) * 64 + bit;
                changed += self.change(bit, bit + 1, true);
            }
        }
        changed
    }

    fn step(&mut self, bitmap: &mut Bitmap, step: &Step) {
        match step {
            Step::Set(first, length) => {
                let expected = self.change(*first, first + length + 1, true);
                assert_eq!(bitmap.set_range(*first..=first + length), expected);
            }
            Step::Clear(first, length) => {
                let expected = self.change(*first, first + length + 1, false);
                assert_eq!(bitmap.clear_range(*first..=first + length), expected);
            }
            Step::Merge(first, words) => {
                let expected = self.merge(*first, words);
                assert_eq!(bitmap.merge_words(*first, words.iter().copied()), expected);
            }
            // A page must not be written before it has been loaded.
            Step::Load(..) if bitmap.writes_in_flight() > 0 => {}
            Step::Load(first, words) => {
                // Only what the disk holds can come from it, so the model's disk gets it too.
                self.merge(*first, words);
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                bitmap.load(first * 8, &bytes);
                for (index, page) in self.disk.iter_mut().enumerate() {
                    let Some(page) = page else { continue };
                    for (offset, byte) in bytes.iter().enumerate() {
                        let at = *first as usize * 8 + offset;
                        if at / PAGE_BYTES == index {
                            page[at % PAGE_BYTES] |= byte;
                        }
                    }
                }
            }
            Step::SetAll => {
                self.bits.fill(true);
                bitmap.set_all();
            }
            Step::ClearAll => {
                self.bits.fill(false);
                bitmap.clear_all();
            }
            Step::Resize(capacity, set) => {
                let old = self.capacity;
                self.bits.resize(capacity.div_ceil(8) as usize, false);
                if *set && *capacity > old {
                    self.change(old / 8, u64::MAX, true);
                }
                self.capacity = *capacity;
                bitmap.resize(Sector(*capacity), *set);
                for page in bitmap.page_count()..3 {
                    (self.disk[page], self.in_flight[page]) = (None, None);
                }
            }
            Step::Take(page) => {
                let mut image = [0xEE; PAGE_BYTES];
                let possible = *page < bitmap.page_count() && self.in_flight[*page].is_none();
                assert_eq!(bitmap.take_page(*page, &mut image), possible);
                if possible {
                    assert_eq!(image.to_vec(), self.page(*page));
                    self.in_flight[*page] = Some(image.to_vec());
                }
            }
            Step::Written(page) => {
                if let Some(image) = self.in_flight[*page].take() {
                    self.disk[*page] = Some(image);
                }
                bitmap.page_written(*page);
            }
            Step::Failed(page) => {
                if self.in_flight[*page].take().is_some() {
                    self.disk[*page] = None;
                }
                bitmap.mark_page_unwritten(*page);
            }
        }
    }

    fn check(&self, bitmap: &Bitmap, probe: u64) {
        let set = |first: u64, end: u64| {
            self.bits.iter().skip(first as usize).take((end - first) as usize).filter(|bit| **bit).count()
                as u64
        };
        assert_eq!(bitmap.set_count(), set(0, u64::MAX));
        assert_eq!(bitmap.count(0..=probe), set(0, probe + 1));
        assert_eq!(bitmap.any_set(probe..=probe + 700), set(probe, probe + 701) > 0);
        assert_eq!(bitmap.set_count_in(ResyncExtent(3)), set(3 * 4096, 4 * 4096));
        let find = |value: bool| {
            let found = self.bits.iter().skip(probe as usize).position(|bit| *bit == value);
            found.map(|index| BlockNumber(probe + index as u64))
        };
        assert_eq!(bitmap.find_next_set(BlockNumber(probe)), find(true));
        assert_eq!(bitmap.find_next_clear(BlockNumber(probe)), find(false));
        assert_eq!(bitmap.writes_in_flight(), self.in_flight.iter().flatten().count());
        assert_eq!(bitmap.changed_page_count(), bitmap.changed_pages(0).count());
        for page in 0..bitmap.page_count() {
            // An unchanged page is on disk as it is in memory, or on its way there.
            if let (false, Some(copy)) =
                (bitmap.page_changed(page), self.in_flight[page].as_ref().or(self.disk[page].as_ref()))
            {
                assert_covers(copy, &self.page(page));
            }
        }
    }
}

/// The disk may hold bits that are no longer set, never the other way round, and after a load also junk.
fn assert_covers(disk: &[u8], memory: &[u8]) {
    assert!(disk.iter().zip(memory).all(|(disk, memory)| memory & !disk == 0), "a set bit is not on disk");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn behaves_as_a_list_of_bits(steps in proptest::collection::vec((step(), 0..80_000u64), 1..40)) {
        let mut bitmap = Bitmap::new(CAPACITY);
        let mut model = Model {
            capacity: CAPACITY.0,
            bits: vec![false; BITS as usize],
            disk: vec![Some(vec![0; PAGE_BYTES]); 3],
            in_flight: vec![None; 3],
        };
        for (step, probe) in &steps {
            model.step(&mut bitmap, step);
            model.check(&bitmap, *probe);
        }
        let words = bitmap.words(0, usize::MAX);
        prop_assert_eq!(words.len() as u64, bitmap.word_count());
        let ones: u64 = words.iter().map(|word| u64::from(word.count_ones())).sum();
        prop_assert_eq!(ones, bitmap.set_count());
    }
}

//! Who watches a key: the members whose key or range contains it.
//!
//! Members with the same span form a group, so a thousand watchers of one prefix are found as one.
//! Single keys sit in a hash map; ranges sit in a treap ordered by (start, end) whose nodes know the
//! greatest end below them, so that looking up a key costs O(log ranges + hits) for nested,
//! overlapping and disjoint ranges alike.
//!
//! Invariants:
//! 1. A member is in exactly one group, at the place `insert` returned or `remove` last reported.
//! 2. A group exists if and only if it has a member.
//! 3. `max` of a treap node names the node of its subtree (itself included) with the greatest end.

use super::slots::{Key, Slots};
use bytes::Bytes;
use std::cmp::Ordering;
use std::collections::HashMap;

/// The keys a watcher asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// One key.
    One(Bytes),
    /// From the first key up to but without the second, or to the end of all keys.
    Range(Bytes, Option<Bytes>),
}

impl Span {
    /// Reads key and range end of a watch request (6W.3); `None` when the range is empty or inverted.
    pub fn from_request(key: Bytes, range_end: Bytes) -> Option<Span> {
        let key = if key.is_empty() {
            Bytes::from_static(&[0])
        } else {
            key
        };
        match &range_end[..] {
            [] => Some(Span::One(key)),
            [0] => Some(Span::Range(key, None)),
            end if key[..] < *end => Some(Span::Range(key, Some(range_end))),
            _ => None,
        }
    }

    /// Whether a key lies in the span.
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Span::One(one) => *key == **one,
            Span::Range(start, None) => *key >= **start,
            Span::Range(start, Some(end)) => *key >= **start && *key < **end,
        }
    }
}

/// Where a member sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    group: Key,
    slot: u32,
}

struct Group<M> {
    span: Span,
    members: Vec<M>,
}

const NIL: u32 = u32::MAX;

struct Node {
    start: Bytes,
    end: Option<Bytes>,
    group: Key,
    priority: u64,
    left: u32,
    right: u32,
    max: u32,
}

/// The index. `M` is whatever names a member.
pub struct Index<M> {
    groups: Slots<Group<M>>,
    keys: HashMap<Bytes, Key>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    random: u64,
}

impl<M> Default for Index<M> {
    fn default() -> Index<M> {
        Index {
            groups: Slots::default(),
            keys: HashMap::new(),
            nodes: Vec::new(),
            free: Vec::new(),
            root: NIL,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

/// An open end is greater than every other.
fn order_ends(a: Option<&Bytes>, b: Option<&Bytes>) -> Ordering {
    match (a, b) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

impl<M: Copy> Index<M> {
    /// Adds a member.
    pub fn insert(&mut self, span: &Span, member: M) -> Place {
        let group = match self.find(span) {
            Some(group) => group,
            None => self.add_group(span),
        };
        let members = &mut self.groups[group].members;
        members.push(member);
        Place {
            group,
            slot: members.len() as u32 - 1,
        }
    }

    /// Takes the member at `place` out. Another member may move into its place: it is returned, and
    /// sits at `place` from now on.
    pub fn remove(&mut self, place: Place) -> Option<M> {
        let group = &mut self.groups[place.group];
        group.members.swap_remove(place.slot as usize);
        if group.members.is_empty() {
            let group = self.groups.remove(place.group).expect("it was there above");
            match &group.span {
                Span::One(key) => drop(self.keys.remove(key)),
                Span::Range(start, end) => self.remove_node(start, end.as_ref()),
            }
            return None;
        }
        group.members.get(place.slot as usize).copied()
    }

    /// Appends the groups whose span contains `key`.
    pub fn lookup(&self, key: &[u8], out: &mut Vec<Key>) {
        if let Some(&group) = self.keys.get(key) {
            out.push(group);
        }
        self.stab(self.root, key, out);
    }

    /// The members of a group that `lookup` found.
    pub fn members(&self, group: Key) -> &[M] {
        &self.groups[group].members
    }

    /// Every member, in an order that depends on insertions and removals alone.
    pub fn all_members(&self) -> Vec<M> {
        let groups = self.groups.iter();
        groups
            .flat_map(|group| group.members.iter().copied())
            .collect()
    }

    fn find(&self, span: &Span) -> Option<Key> {
        match span {
            Span::One(key) => self.keys.get(key).copied(),
            Span::Range(start, end) => {
                let mut at = self.root;
                while at != NIL {
                    let node = &self.nodes[at as usize];
                    at = match Self::order(start, end.as_ref(), node) {
                        Ordering::Less => node.left,
                        Ordering::Greater => node.right,
                        Ordering::Equal => return Some(node.group),
                    };
                }
                None
            }
        }
    }

    fn add_group(&mut self, span: &Span) -> Key {
        let group = self.groups.insert(Group {
            span: span.clone(),
            members: Vec::new(),
        });
        match span {
            Span::One(key) => drop(self.keys.insert(key.clone(), group)),
            Span::Range(start, end) => self.insert_node(start.clone(), end.clone(), group),
        }
        group
    }

    fn order(start: &Bytes, end: Option<&Bytes>, node: &Node) -> Ordering {
        start
            .cmp(&node.start)
            .then_with(|| order_ends(end, node.end.as_ref()))
    }

    fn insert_node(&mut self, start: Bytes, end: Option<Bytes>, group: Key) {
        // xorshift64: balance needs no better randomness, and a fixed seed keeps runs repeatable.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let (left, right) = self.split(self.root, &start, end.as_ref());
        let node = Node {
            start,
            end,
            group,
            priority: self.random,
            left: NIL,
            right: NIL,
            max: NIL,
        };
        let at = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.refresh(at);
        let left = self.merge(left, at);
        self.root = self.merge(left, right);
    }

    fn remove_node(&mut self, start: &Bytes, end: Option<&Bytes>) {
        let (left, right) = self.split(self.root, start, end);
        let (found, right) = self.pop_first(right);
        debug_assert_eq!(
            Self::order(start, end, &self.nodes[found as usize]),
            Ordering::Equal
        );
        let node = &mut self.nodes[found as usize];
        (node.start, node.end) = (Bytes::new(), None);
        self.free.push(found);
        self.root = self.merge(left, right);
    }

    /// Recomputes `max` of a node from its children.
    fn refresh(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let mut max = at;
        for child in [node.left, node.right] {
            if child == NIL {
                continue;
            }
            let candidate = self.nodes[child as usize].max;
            let ends = (
                self.nodes[candidate as usize].end.as_ref(),
                self.nodes[max as usize].end.as_ref(),
            );
            if order_ends(ends.0, ends.1).is_gt() {
                max = candidate;
            }
        }
        self.nodes[at as usize].max = max;
    }

    /// Splits into what is below (start, end) and what is not.
    fn split(&mut self, at: u32, start: &Bytes, end: Option<&Bytes>) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        let node = &self.nodes[at as usize];
        if Self::order(start, end, node).is_gt() {
            let (low, high) = self.split(node.right, start, end);
            self.nodes[at as usize].right = low;
            self.refresh(at);
            (at, high)
        } else {
            let (low, high) = self.split(node.left, start, end);
            self.nodes[at as usize].left = high;
            self.refresh(at);
            (low, at)
        }
    }

    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        let (l, r) = (&self.nodes[left as usize], &self.nodes[right as usize]);
        if l.priority > r.priority {
            let merged = self.merge(l.right, right);
            self.nodes[left as usize].right = merged;
            self.refresh(left);
            left
        } else {
            let merged = self.merge(left, r.left);
            self.nodes[right as usize].left = merged;
            self.refresh(right);
            right
        }
    }

    /// Takes the first node out; `at` is not empty.
    fn pop_first(&mut self, at: u32) -> (u32, u32) {
        let left = self.nodes[at as usize].left;
        if left == NIL {
            return (at, self.nodes[at as usize].right);
        }
        let (found, rest) = self.pop_first(left);
        self.nodes[at as usize].left = rest;
        self.refresh(at);
        (found, at)
    }

    fn stab(&self, at: u32, key: &[u8], out: &mut Vec<Key>) {
        if at == NIL {
            return;
        }
        let node = &self.nodes[at as usize];
        let past = |end: &Option<Bytes>| end.as_ref().is_some_and(|end| **end <= *key);
        if past(&self.nodes[node.max as usize].end) {
            return;
        }
        self.stab(node.left, key, out);
        if *node.start <= *key {
            if !past(&node.end) {
                out.push(node.group);
            }
            self.stab(node.right, key, out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn span() -> impl Strategy<Value = Span> {
        let key = || prop::collection::vec(0u8..4, 1..4).prop_map(Bytes::from);
        prop_oneof![
            key().prop_map(Span::One),
            key().prop_map(|start| Span::Range(start, None)),
            (key(), key()).prop_map(|(start, end)| Span::Range(start, Some(end))),
        ]
    }

    proptest! {
        /// The index finds what a linear scan finds, through inserts and removals in any order.
        #[test]
        fn lookup_equals_a_linear_scan(
            steps in prop::collection::vec((span(), any::<prop::sample::Index>(), any::<bool>()), 1..120),
            probes in prop::collection::vec(prop::collection::vec(0u8..4, 1..4), 1..30),
        ) {
            let mut index = Index::default();
            let mut members: HashMap<usize, (Span, Place)> = HashMap::new();
            for (id, (span, pick, add)) in steps.into_iter().enumerate() {
                if add || members.is_empty() {
                    let place = index.insert(&span, id);
                    members.insert(id, (span, place));
                } else {
                    let mut ids: Vec<_> = members.keys().copied().collect();
                    ids.sort_unstable();
                    let (_, place) = members.remove(pick.get(&ids)).unwrap();
                    if let Some(moved) = index.remove(place) {
                        members.get_mut(&moved).unwrap().1 = place;
                    }
                }
            }
            for probe in &probes {
                let mut groups = Vec::new();
                index.lookup(probe, &mut groups);
                let mut found: Vec<usize> =
                    groups.iter().flat_map(|&g| index.members(g).to_vec()).collect();
                found.sort_unstable();
                let mut want: Vec<usize> = members
                    .iter()
                    .filter(|(_, (span, _))| span.contains(probe))
                    .map(|(&id, _)| id)
                    .collect();
                want.sort_unstable();
                prop_assert_eq!(found, want);
            }
        }
    }

    #[test]
    fn emptied_groups_leave_nothing_behind() {
        let mut index = Index::default();
        let spans = [
            Span::One("a".into()),
            Span::Range("a".into(), Some("b".into())),
            Span::Range("a".into(), None),
        ];
        let places: Vec<_> = spans.iter().map(|s| index.insert(s, 1)).collect();
        for place in places {
            assert_eq!(index.remove(place), None);
        }
        assert_eq!(
            (index.root, index.groups.len(), index.keys.len()),
            (NIL, 0, 0)
        );
    }

    #[test]
    fn watch_request_ranges_6w_3() {
        let span = |k: &'static str, e: &'static str| Span::from_request(k.into(), e.into());
        assert_eq!(span("", ""), Some(Span::One("\0".into())));
        assert_eq!(span("\0", "\0"), Some(Span::Range("\0".into(), None)));
        assert_eq!(span("k", "\0"), Some(Span::Range("k".into(), None)));
        assert_eq!(
            span("", "b"),
            Some(Span::Range("\0".into(), Some("b".into())))
        );
        assert_eq!(span("b", "b"), None);
        assert_eq!(span("c", "b"), None);
    }
}

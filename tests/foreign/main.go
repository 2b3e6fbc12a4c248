// Command foreign reads and writes tiled logs with the Go project's own log code (golang.org/x/mod/sumdb), which shares
// nothing with Commonweal's: what both agree on is the specification.
//
//	foreign check DIR VKEY WITNESS...      refuse (exit 1) or print what was checked; each of these witnesses
//	                                       must have cosigned every checkpoint
//	foreign evidence FILE VKEY WITNESS...  refuse, or print which two roots the log has signed (a fork evidence
//	                                       file), and which of these witnesses have cosigned both
//	foreign write DIR SKEY SIZE...         write a log that grows through these sizes, and print its vkey
//
// The first and the last use one layout:
//
//	DIR/public/checkpoint, tile/...      the log (C2SP tlog-checkpoint, tlog-tiles)
//	DIR/older/<size>                     an earlier signed checkpoint
//	DIR/older/<size>.path                the consistency proof from it to the newest: a base64 hash a line
//	DIR/receipts/<index>.<size>          a C2SP tlog-proof@v1 of an entry under the checkpoint of that size
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	height   = 8
	width    = 1 << height
	maxEntry = 65535
	// Above, proofs are tried for a sample of the entries only: TileHashReader reads four tiles for each.
	allProofs = 1000
	sample    = 997
)

func main() {
	var err error
	switch {
	case len(os.Args) >= 4 && os.Args[1] == "check":
		err = check(os.Args[2], os.Args[3], os.Args[4:])
	case len(os.Args) >= 4 && os.Args[1] == "evidence":
		err = evidence(os.Args[2], os.Args[3], os.Args[4:])
	case len(os.Args) > 4 && os.Args[1] == "write":
		err = write(os.Args[2], os.Args[3], os.Args[4:])
	default:
		err = errors.New("usage: foreign check DIR VKEY WITNESS... | evidence FILE VKEY WITNESS... | write DIR SKEY SIZE...")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
}

// -- what both directions need

// memory holds every hash of a tree in x/mod's storage order.
type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	hashes := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		if x >= int64(len(m)) {
			return nil, fmt.Errorf("hash %d of %d", x, len(m))
		}
		hashes[i] = m[x]
	}
	return hashes, nil
}

func (m *memory) add(n int64, entry []byte) error {
	hashes, err := tlog.StoredHashes(n, entry, *m)
	*m = append(*m, hashes...)
	return err
}

// root is tlog.TreeHash but for the empty tree, for which x/mod has 32 zero bytes and RFC 6962 has SHA-256("").
func (m memory) root(n int64) (tlog.Hash, error) {
	if n == 0 {
		return sha256.Sum256(nil), nil
	}
	return tlog.TreeHash(n, m)
}

// tiles lists the tiles of a tree that grew from old, without the narrower widths that NewTiles adds.
func tiles(old, size int64) []tlog.Tile {
	var widest []tlog.Tile
	for _, t := range tlog.NewTiles(height, old, size) {
		if last := len(widest) - 1; last >= 0 && widest[last].L == t.L && widest[last].N == t.N {
			widest[last] = t
		} else {
			widest = append(widest, t)
		}
	}
	return widest
}

// tilePath is C2SP's: x/mod's without the height.
func tilePath(t tlog.Tile) string {
	return strings.Replace(t.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
}

func bundlePath(t tlog.Tile) string {
	t.L = -1
	return strings.Replace(tilePath(t), "tile/data/", "tile/entries/", 1)
}

func checkpointText(origin string, size int64, root tlog.Hash) string {
	return fmt.Sprintf("%s\n%d\n%s\n", origin, size, root)
}

// proofLines are a proof's hashes as our files spell them.
func proofLines(hashes []tlog.Hash) string {
	var lines strings.Builder
	for _, h := range hashes {
		lines.WriteString(h.String() + "\n")
	}
	return lines.String()
}

func parseHashes(lines string) ([]tlog.Hash, error) {
	var hashes []tlog.Hash
	for lines != "" {
		line, rest, ok := strings.Cut(lines, "\n")
		h, err := tlog.ParseHash(line)
		if err != nil || !ok || h.String() != line {
			return nil, fmt.Errorf("not a line with a hash: %q", line)
		}
		hashes, lines = append(hashes, h), rest
	}
	return hashes, nil
}

func provenSample(size int64) int64 {
	if size > allProofs {
		return sample
	}
	return 1
}

// -- witnesses

// witness is a key of type 04 (C2SP tlog-cosignature), which x/mod does not know.
type witness struct {
	name string
	hash uint32
	key  ed25519.PublicKey
}

func (w witness) Name() string    { return w.name }
func (w witness) KeyHash() uint32 { return w.hash }

func (w witness) Verify(text, signature []byte) bool {
	if len(signature) != 8+ed25519.SignatureSize {
		return false
	}
	at := binary.BigEndian.Uint64(signature)
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", at, text)
	return at != 0 && at < 1<<63 && ed25519.Verify(w.key, []byte(message), signature[8:])
}

func parseWitnesses(vkeys []string) ([]note.Verifier, error) {
	var witnesses []note.Verifier
	for _, vkey := range vkeys {
		fields := strings.SplitN(vkey, "+", 3)
		if len(fields) != 3 {
			return nil, fmt.Errorf("not a vkey: %q", vkey)
		}
		key, err := base64.StdEncoding.DecodeString(fields[2])
		if err != nil || len(key) != 1+ed25519.PublicKeySize || key[0] != 4 {
			return nil, fmt.Errorf("not a witness's Ed25519 key: %q", vkey)
		}
		sum := sha256.Sum256([]byte(fields[0] + "\n" + string(key)))
		hash := binary.BigEndian.Uint32(sum[:])
		if fields[1] != fmt.Sprintf("%08x", hash) {
			return nil, fmt.Errorf("the key ID is not the key's: %q", vkey)
		}
		witnesses = append(witnesses, witness{fields[0], hash, key[1:]})
	}
	return witnesses, nil
}

// opened is a checkpoint whose log has signed it, and who else has, of those asked for.
type opened struct {
	tree    tlog.Tree
	cosigns map[uint32]bool
}

// openCheckpoint verifies a signed checkpoint and parses its text strictly.
func openCheckpoint(signed []byte, log note.Verifier, witnesses []note.Verifier) (opened, error) {
	o := opened{cosigns: make(map[uint32]bool)}
	n, err := note.Open(signed, note.VerifierList(append([]note.Verifier{log}, witnesses...)...))
	if err != nil {
		return o, err
	}
	own := false
	for _, s := range n.Sigs {
		own = own || s.Name == log.Name() && s.Hash == log.KeyHash()
		o.cosigns[s.Hash] = true
	}
	lines := strings.Split(n.Text, "\n")
	if !own || len(lines) != 4 {
		return o, fmt.Errorf("a checkpoint of %d lines, signed by its log: %v", len(lines)-1, own)
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return o, err
	}
	root, err := tlog.ParseHash(lines[2])
	if err != nil {
		return o, err
	}
	if checkpointText(log.Name(), size, root) != n.Text || size < 0 {
		return o, fmt.Errorf("another origin or encoding: %q", n.Text)
	}
	o.tree = tlog.Tree{N: size, Hash: root}
	return o, nil
}

// -- evidence

func evidence(file, vkey string, vkeys []string) error {
	log, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	witnesses, err := parseWitnesses(vkeys)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	// A checkpoint has one empty line, before its signatures.
	parts := strings.Split(string(data), "\n\n")
	if len(parts) != 5 || !strings.HasPrefix(parts[0]+"\n", "commonweal/fork-evidence@v1\n") {
		return fmt.Errorf("not fork evidence: %d parts", len(parts))
	}
	one, err := openCheckpoint([]byte(parts[1]+"\n\n"+parts[2]+"\n"), log, witnesses)
	if err != nil {
		return fmt.Errorf("the smaller: %w", err)
	}
	two, err := openCheckpoint([]byte(parts[3]+"\n\n"+parts[4]), log, witnesses)
	if err != nil {
		return fmt.Errorf("the larger: %w", err)
	}
	// What the larger tree has at the smaller size; between two of one size, that is its root.
	prefix := two.tree.Hash
	if one.tree.N != two.tree.N {
		_, rest, _ := strings.Cut(parts[0], "\nprefix ")
		hashes, err := parseHashes(rest + "\n")
		if err != nil {
			return err
		}
		prefix = hashes[0]
		if err := tlog.CheckTree(hashes[1:], two.tree.N, two.tree.Hash, one.tree.N, prefix); err != nil {
			return err
		}
	}
	if prefix == one.tree.Hash {
		return errors.New("no fork")
	}
	fmt.Printf("at %d: %v, %v\n", one.tree.N, one.tree.Hash, prefix)
	for _, w := range witnesses {
		if one.cosigns[w.KeyHash()] && two.cosigns[w.KeyHash()] {
			fmt.Println("lying witness", w.Name())
		}
	}
	return nil
}

// -- check

type folder struct {
	dir       string
	log       note.Verifier
	witnesses []note.Verifier
}

func (f folder) read(elements ...string) ([]byte, error) {
	return os.ReadFile(filepath.Join(append([]string{f.dir}, elements...)...))
}

func (f folder) Height() int { return height }

func (f folder) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	data := make([][]byte, len(wanted))
	for i, t := range wanted {
		var err error
		if data[i], err = f.read("public", tilePath(t)); err != nil {
			return nil, err
		}
	}
	return data, nil
}

func (f folder) SaveTiles([]tlog.Tile, [][]byte) {}

// open verifies a signed checkpoint, which every witness must have cosigned.
func (f folder) open(signed []byte) (tlog.Tree, error) {
	o, err := openCheckpoint(signed, f.log, f.witnesses)
	for _, w := range f.witnesses {
		if err == nil && !o.cosigns[w.KeyHash()] {
			err = fmt.Errorf("not cosigned by %s", w.Name())
		}
	}
	return o.tree, err
}

func check(dir, vkey string, vkeys []string) error {
	log, err := note.NewVerifier(vkey)
	if err != nil {
		return err
	}
	witnesses, err := parseWitnesses(vkeys)
	if err != nil {
		return err
	}
	f := folder{dir, log, witnesses}
	signed, err := f.read("public", "checkpoint")
	if err != nil {
		return err
	}
	tree, err := f.open(signed)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	all, entries, err := f.checkFiles(tree)
	if err != nil {
		return err
	}
	inclusion, err := f.checkInclusion(tree, entries)
	if err != nil {
		return fmt.Errorf("inclusion: %w", err)
	}
	consistency, err := f.checkOlder(tree, all)
	if err != nil {
		return fmt.Errorf("older: %w", err)
	}
	receipts, err := f.checkReceipts(all, entries)
	if err != nil {
		return fmt.Errorf("receipts: %w", err)
	}
	fmt.Printf("size %d, inclusion %d, consistency %d, receipts %d\n", tree.N, inclusion, consistency, receipts)
	return nil
}

// checkFiles re-computes the whole tree from the bundles and holds every tile, and every file below tile/, against it.
func (f folder) checkFiles(tree tlog.Tree) (memory, [][]byte, error) {
	var all memory
	var entries [][]byte
	wanted := make(map[string][]byte)
	for _, t := range tiles(0, tree.N) {
		if t.L != 0 {
			continue
		}
		data, err := f.read("public", bundlePath(t))
		if err != nil {
			return nil, nil, err
		}
		wanted[bundlePath(t)] = data
		for i := 0; i < t.W; i++ {
			if len(data) < 2 || len(data) < 2+int(binary.BigEndian.Uint16(data)) {
				return nil, nil, fmt.Errorf("%s: entry %d is cut off", bundlePath(t), i)
			}
			end := 2 + int(binary.BigEndian.Uint16(data))
			if err := all.add(int64(len(entries)), data[2:end]); err != nil {
				return nil, nil, err
			}
			entries = append(entries, data[2:end])
			data = data[end:]
		}
		if len(data) != 0 {
			return nil, nil, fmt.Errorf("%s: %d bytes too many", bundlePath(t), len(data))
		}
	}
	if root, err := all.root(tree.N); err != nil || root != tree.Hash {
		return nil, nil, fmt.Errorf("bundles: hash to %v, signed is %v (%v)", root, tree.Hash, err)
	}
	for _, t := range tiles(0, tree.N) {
		expected, err := tlog.ReadTileData(t, all)
		if err != nil {
			return nil, nil, err
		}
		data, err := f.read("public", tilePath(t))
		if err != nil {
			return nil, nil, err
		}
		if !bytes.Equal(data, expected) {
			return nil, nil, fmt.Errorf("%s: is not the tree's", tilePath(t))
		}
		wanted[tilePath(t)] = data
	}
	if tree.N == 0 {
		return all, entries, nil
	}
	public := filepath.Join(f.dir, "public")
	return all, entries, filepath.WalkDir(filepath.Join(public, "tile"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		path, err = filepath.Rel(public, path)
		if err != nil || wanted[path] != nil {
			return err
		}
		// What else may lie there are earlier, narrower widths of a tile.
		data, err := f.read("public", path)
		if err != nil {
			return err
		}
		for now, whole := range wanted {
			grown := filepath.Dir(now) == filepath.Dir(path) || now+".p" == filepath.Dir(path)
			if strings.Contains(path, ".p/") && grown && bytes.HasPrefix(whole, data) {
				return nil
			}
		}
		return fmt.Errorf("%s: no such tile in the tree", path)
	})
}

// checkInclusion proves entries from the tiles on disk alone.
func (f folder) checkInclusion(tree tlog.Tree, entries [][]byte) (int, error) {
	count := 0
	reader := tlog.TileHashReader(tree, f)
	step := provenSample(tree.N)
	for i := int64(0); i < tree.N; i += step {
		proof, err := tlog.ProveRecord(tree.N, i, reader)
		if err != nil {
			return 0, err
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, i, tlog.RecordHash(entries[i])); err != nil {
			return 0, err
		}
		count++
	}
	return count, nil
}

// checkOlder holds earlier checkpoints, and the consistency proofs that came with them, against the newest.
func (f folder) checkOlder(tree tlog.Tree, all memory) (int, error) {
	names, err := filepath.Glob(filepath.Join(f.dir, "older", "*[0-9]"))
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		signed, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		older, err := f.open(signed)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		if older.N > tree.N || strconv.FormatInt(older.N, 10) != filepath.Base(name) {
			return 0, fmt.Errorf("%s: is of size %d", name, older.N)
		}
		if root, err := all.root(older.N); err != nil || root != older.Hash {
			return 0, fmt.Errorf("%s: forked: hashes to %v, signed was %v (%v)", name, root, older.Hash, err)
		}
		lines, err := os.ReadFile(name + ".path")
		if err != nil {
			return 0, err
		}
		proof, err := parseHashes(string(lines))
		if err != nil {
			return 0, fmt.Errorf("%s.path: %w", name, err)
		}
		if older.N == 0 {
			// x/mod has no proof from the empty tree; RFC 6962 has the empty one.
			if len(proof) != 0 {
				return 0, fmt.Errorf("%s.path: not empty", name)
			}
			continue
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, older.N, older.Hash); err != nil {
			return 0, fmt.Errorf("%s.path: %w", name, err)
		}
		// From the tiles on disk as well: the same proof, hash by hash.
		own, err := tlog.ProveTree(tree.N, older.N, tlog.TileHashReader(tree, f))
		if err != nil || proofLines(own) != string(lines) {
			return 0, fmt.Errorf("%s.path: the tiles prove it otherwise (%v)", name, err)
		}
	}
	return len(names), nil
}

func (f folder) checkReceipts(all memory, entries [][]byte) (int, error) {
	names, err := filepath.Glob(filepath.Join(f.dir, "receipts", "*"))
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		head, signed, _ := strings.Cut(string(data), "\n\n")
		lines := strings.SplitN(head+"\n", "\n", 3)
		if len(lines) != 3 || lines[0] != "c2sp.org/tlog-proof@v1" {
			return 0, fmt.Errorf("%s: not a proof", name)
		}
		proof, err := parseHashes(lines[2])
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		tree, err := f.open([]byte(signed))
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
		if err != nil || lines[1] != fmt.Sprintf("index %d", index) || index < 0 || index >= int64(len(entries)) {
			return 0, fmt.Errorf("%s: no entry at %q", name, lines[1])
		}
		if filepath.Base(name) != fmt.Sprintf("%d.%d", index, tree.N) {
			return 0, fmt.Errorf("%s: is of entry %d under size %d", name, index, tree.N)
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, index, tlog.RecordHash(entries[index])); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		if root, err := all.root(tree.N); err != nil || root != tree.Hash {
			return 0, fmt.Errorf("%s: its checkpoint is of a fork (%v)", name, err)
		}
	}
	return len(names), nil
}

// -- write

// entry is empty for every fourth index, and once as large as a bundle can say.
func entry(i int64) []byte {
	if i == 5 {
		return bytes.Repeat([]byte("x"), maxEntry)
	}
	return []byte(strings.Repeat(fmt.Sprintf("foreign entry %d ", i), int(i%4)))
}

func write(dir, skey string, sizes []string) error {
	signer, err := note.NewSigner(skey)
	if err != nil {
		return err
	}
	put := func(data []byte, elements ...string) error {
		path := filepath.Join(append([]string{dir}, elements...)...)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, data, 0o644)
	}
	var all memory
	var size int64
	older := make(map[int64][]byte)
	for _, text := range sizes {
		old := size
		if size, err = strconv.ParseInt(text, 10, 64); err != nil || size < old {
			return fmt.Errorf("not a size from %d on: %q", old, text)
		}
		for i := old; i < size; i++ {
			if err := all.add(i, entry(i)); err != nil {
				return err
			}
		}
		for _, t := range tiles(old, size) {
			data, err := tlog.ReadTileData(t, all)
			if err != nil {
				return err
			}
			if err := put(data, "public", tilePath(t)); err != nil {
				return err
			}
			if t.L != 0 {
				continue
			}
			var bundle []byte
			for i := t.N * width; i < t.N*width+int64(t.W); i++ {
				bundle = binary.BigEndian.AppendUint16(bundle, uint16(len(entry(i))))
				bundle = append(bundle, entry(i)...)
			}
			if err := put(bundle, "public", bundlePath(t)); err != nil {
				return err
			}
		}
		root, err := all.root(size)
		if err != nil {
			return err
		}
		signed, err := note.Sign(&note.Note{Text: checkpointText(signer.Name(), size, root)}, signer)
		if err != nil {
			return err
		}
		older[size] = signed
		for i := int64(0); i < size; i += provenSample(size) {
			proof, err := tlog.ProveRecord(size, i, all)
			if err != nil {
				return err
			}
			receipt := fmt.Sprintf("c2sp.org/tlog-proof@v1\nindex %d\n%s\n%s", i, proofLines(proof), signed)
			if err := put([]byte(receipt), "receipts", fmt.Sprintf("%d.%d", i, size)); err != nil {
				return err
			}
		}
	}
	if err := put(older[size], "public", "checkpoint"); err != nil {
		return err
	}
	for n, signed := range older {
		var proof tlog.TreeProof
		if n != 0 {
			if proof, err = tlog.ProveTree(size, n, all); err != nil {
				return err
			}
		}
		name := strconv.FormatInt(n, 10)
		if err := put(signed, "older", name); err != nil {
			return err
		}
		if err := put([]byte(proofLines(proof)), "older", name+".path"); err != nil {
			return err
		}
	}
	vkey, err := verifierKey(signer.Name(), skey)
	fmt.Println(vkey)
	return err
}

func verifierKey(name, skey string) (string, error) {
	// NewSigner has accepted it: PRIVATE+KEY+<name>+<hash>+<base64, which may hold plus signs>.
	seed, err := base64.StdEncoding.DecodeString(strings.SplitN(skey, "+", 5)[4])
	if err != nil {
		return "", err
	}
	public := ed25519.NewKeyFromSeed(seed[1:]).Public().(ed25519.PublicKey)
	return note.NewEd25519VerifierKey(name, public)
}

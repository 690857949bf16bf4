package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"kvmesh/node"
	"kvmesh/node/certs"
)

func (r *run) clusterRecover() *ucli.Command {
	return &ucli.Command{
		Name:  "recover",
		Usage: "rebuild the mesh from one survivor when a majority of the voters is lost for good",
		Description: "Works on the data directory of a stopped voter or learner. It says what the survivor has and what may be lost, asks,\n" +
			"and makes it the only voter. Started again, it leads by itself in a new epoch, and every cache asks anew for what it\n" +
			"holds. No other voter may ever be started again with its old data directory.\n\n" +
			"With several survivors, recover the best one. Those on one machine: --data-dir for each. Those on several: run it on\n" +
			"each with --dry-run -o json > FILE, and give the FILEs of the others with --compare.",
		Flags: []ucli.Flag{
			&ucli.StringSliceFlag{Name: "data-dir", Usage: "`DIR` of a stopped node [$KVMESH_DATA_DIR]; may be repeated, to find the best one"},
			&ucli.StringFlag{Name: "mesh-key", Usage: "`FILE` with the mesh key [$KVMESH_MESH_KEY]"},
			&ucli.StringSliceFlag{Name: "compare", Usage: "`FILE` with what another survivor's --dry-run -o json has printed; may be repeated"},
			&ucli.BoolFlag{Name: "dry-run", Usage: "only say what the survivor has", DisableDefaultText: true},
			&ucli.BoolFlag{Name: "yes", Usage: "do not ask", DisableDefaultText: true},
			outputFlag(),
		},
		Action: r.recover,
	}
}

func (r *run) recover(c *ucli.Context) error {
	if err := exactly(c, 0, "no arguments"); err != nil {
		return err
	}
	asJSON, err := wantsJSON(c)
	if err != nil {
		return err
	}
	dirs := c.StringSlice("data-dir")
	if dir, ok := r.Env("KVMESH_DATA_DIR"); len(dirs) == 0 && ok {
		dirs = []string{dir}
	}
	if len(dirs) == 0 {
		return usagef("name the data directory of the survivor with --data-dir")
	}
	keyFile := r.fromEnv(c, "mesh-key", "MESH_KEY")
	if keyFile == "" {
		return usagef("name the file with the mesh key with --mesh-key")
	}
	key, _, err := certs.ReadMeshKeyFile(keyFile)
	if err != nil {
		return err
	}
	var here []node.Survivor
	for _, dir := range dirs {
		sv, err := node.Survey(node.RecoverOptions{DataDir: dir, MeshKey: key})
		if err != nil {
			return err
		}
		here = append(here, sv)
	}
	others, err := readSurvivors(c.StringSlice("compare"))
	if err != nil {
		return err
	}
	all := slices.Concat(here, others)
	switch dry := c.Bool("dry-run"); {
	case asJSON && !dry && !c.Bool("yes"):
		return usagef("-o json asks nothing; add --dry-run or --yes")
	case !asJSON || dry:
		if err := r.showSurvivors(all, asJSON); err != nil {
			return err
		}
	}
	if err := recoverable(all); err != nil {
		return err
	}
	switch best := bestSurvivor(all); {
	case c.Bool("dry-run"):
		return nil
	case len(here) > 1:
		return usagef("several data directories were given, and nothing was changed; recover the best one: --data-dir %s", best.DataDir)
	case here[0].Later(best) < 0:
		return fmt.Errorf("nothing was changed: the survivor %s (node %s) has more than this one; recover that one", best.DataDir, best.Node)
	}
	if !c.Bool("yes") {
		if err := r.confirmRecovery(here[0]); err != nil {
			return err
		}
	}
	out, err := node.Recover(node.RecoverOptions{DataDir: dirs[0], MeshKey: key})
	switch {
	case err != nil:
		return err
	case asJSON:
		return r.printJSON(out)
	}
	return r.printf("\nRecovered: node %s is the only voter, in generation %d of the mesh; epoch %s, revision %d.\n"+
		"Start it as before (with --role voter). Move the data directories of all other voters and learners aside before you\n"+
		"start them again: they join as new nodes, by themselves. Edges need nothing.\n",
		out.Node, out.Generation, out.Epoch, out.Revision)
}

// maxSurvivorFile bounds what is read of a --compare file.
const maxSurvivorFile = 1 << 20

// readSurvivors reads what other survivors have printed.
func readSurvivors(files []string) ([]node.Survivor, error) {
	var out []node.Survivor
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(io.LimitReader(f, maxSurvivorFile))
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		var doc survivorsDoc
		if err := json.Unmarshal(b, &doc); err != nil || len(doc.Survivors) == 0 {
			return nil, usagef("--compare %s does not hold what \"kvmesh cluster recover --dry-run -o json\" prints", name)
		}
		out = append(out, doc.Survivors...)
	}
	return out, nil
}

// survivorsDoc is what -o json prints before anything is done.
type survivorsDoc struct {
	Survivors []node.Survivor `json:"survivors"`
	Best      string          `json:"best"` // node id
}

func bestSurvivor(all []node.Survivor) node.Survivor {
	return slices.MaxFunc(all, node.Survivor.Later)
}

// recoverable refuses survivors that do not need a recovery, or do not belong together.
func recoverable(all []node.Survivor) error {
	best := bestSurvivor(all)
	found := 0
	for _, s := range all {
		if s.Cluster != best.Cluster {
			return fmt.Errorf("%s belongs to mesh %s, %s to mesh %s", s.DataDir, s.Cluster, best.DataDir, best.Cluster)
		}
		if s.Generation == best.Generation && slices.Contains(best.Voters, s.Node) && !s.Unfinished {
			found++
		}
	}
	if need := len(best.Voters)/2 + 1; found >= need && len(best.Voters) > 1 {
		return fmt.Errorf("%d of %d voters are here, which is a majority: nothing is lost. Start them, and replace the others", found, len(best.Voters))
	}
	if found >= 1 && len(best.Voters) == 1 {
		return fmt.Errorf("node %s is the only voter of its mesh already: start it", best.Node)
	}
	return nil
}

// showSurvivors says what there is and what may be lost.
func (r *run) showSurvivors(all []node.Survivor, asJSON bool) error {
	best := bestSurvivor(all)
	if asJSON {
		return r.printJSON(survivorsDoc{Survivors: all, Best: best.Node})
	}
	var b strings.Builder
	for _, s := range all {
		fmt.Fprintf(&b, "survivor      %s\n  node        %s\n  mesh        %s, generation %d\n", s.DataDir, s.Node, s.Cluster, s.Generation)
		fmt.Fprintf(&b, "  log         ends at index %d of term %d\n", s.LastIndex, s.LastTerm)
		fmt.Fprintf(&b, "  state       revision %d, epoch %s; mesh time %s\n", s.Revision, s.Epoch, s.MeshTime.Format(time.RFC3339))
		fmt.Fprintf(&b, "  members     %d voters, %d learners\n", len(s.Voters), len(s.Learners))
		switch {
		case s.MissingBlobs > 0:
			fmt.Fprintf(&b, "  values      %d of %d large values are not on this disk, and will be lost\n", s.MissingBlobs, s.Blobs)
		case s.Blobs > 0:
			fmt.Fprintf(&b, "  values      all %d large values are on this disk\n", s.Blobs)
		}
		if s.Unfinished {
			b.WriteString("  A recovery of this directory was begun and interrupted. It must be finished: run this command without --dry-run.\n")
		}
	}
	if len(all) > 1 {
		fmt.Fprintf(&b, "\nThe best survivor is node %s (%s): recover that one, and no other.\n", best.Node, best.DataDir)
	}
	b.WriteString("\n" + mayBeLost(all, best) + "\n")
	return r.printf("%s", b.String())
}

// mayBeLost says which acknowledged writes the best survivor may not have. A write is acknowledged when a majority of the
// voters has it in its log, so one that none of those seen here has needs a majority among the others.
func mayBeLost(all []node.Survivor, best node.Survivor) string {
	unseen := slices.DeleteFunc(slices.Clone(best.Voters), func(id string) bool {
		return slices.ContainsFunc(all, func(s node.Survivor) bool { return s.Node == id && s.Generation == best.Generation })
	})
	if need := len(best.Voters)/2 + 1; len(unseen) < need {
		return fmt.Sprintf("Nothing that was acknowledged is lost: it takes %d voters to acknowledge a write, and only %d are not seen here.",
			need, len(unseen))
	}
	return fmt.Sprintf("What may be lost: writes that were acknowledged after index %d of term %d, if there were any. The %d voters that\n"+
		"are not seen here (%s) could acknowledge writes without this one.",
		best.LastIndex, best.LastTerm, len(unseen), strings.Join(unseen, ", "))
}

// confirmRecovery asks for the word that says yes.
func (r *run) confirmRecovery(s node.Survivor) error {
	if err := r.printf("\nNo other voter may run now, nor ever be started again with its data directory. Type \"recover\" to make %s the only voter: ",
		s.Node); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(r.In, 1024)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != "recover" {
		return errors.New("nothing was changed (--yes does not ask)")
	}
	return nil
}

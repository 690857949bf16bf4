package cli

import (
	ucli "github.com/urfave/cli/v2"
)

func (r *run) serveCommand() *ucli.Command {
	return &ucli.Command{
		Name:  "serve",
		Usage: "run one node",
		Description: "A first mesh of one voter:\n\n" +
			"   kvmesh mesh-key new > mesh.key\n" +
			"   kvmesh serve --mesh-key mesh.key\n\n" +
			"   and an edge that joins it:\n\n" +
			"   kvmesh serve --role edge --mesh-key mesh.key --join 127.0.0.1:8582 --data-dir edge \\\n" +
			"      --http 127.0.0.1:8680 --peer 127.0.0.1:8681 --gossip 127.0.0.1:8682 --admin 127.0.0.1:8683",
		Flags: settingFlags(),
		Action: func(c *ucli.Context) error {
			if err := exactly(c, 0, "no arguments"); err != nil {
				return err
			}
			l, err := r.loadConfig(c)
			if err != nil {
				return err
			}
			if err := l.Validate(); err != nil {
				return err
			}
			return r.hooks.Serve(c.Context, l.Config, r.IO)
		},
	}
}

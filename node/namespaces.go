package node

import (
	"context"
	"errors"

	"kvmesh/raftstore/command"
	"kvmesh/raftstore/kv"
)

// CreateNamespace makes a namespace with a data key of its own.
func (s *service) CreateNamespace(ctx context.Context, title string) (kv.Namespace, error) {
	if err := kv.ValidateTitle(title); err != nil {
		return kv.Namespace{}, err
	}
	id := kv.NewNamespaceID()
	wrapped, err := s.kek.NewDataKey(id)
	if err != nil {
		return kv.Namespace{}, err
	}
	err = s.changeControl(ctx, command.Op{Kind: command.KindCreateNamespace, Namespace: id, Title: title, WrappedKey: wrapped})
	if err != nil {
		return kv.Namespace{}, err
	}
	return s.control.namespace(ctx, id.String())
}

// RenameNamespace gives a namespace another title.
func (s *service) RenameNamespace(ctx context.Context, id kv.NamespaceID, title string) (kv.Namespace, error) {
	if err := kv.ValidateTitle(title); err != nil {
		return kv.Namespace{}, err
	}
	if err := s.changeControl(ctx, command.Op{Kind: command.KindRenameNamespace, Namespace: id, Title: title}); err != nil {
		return kv.Namespace{}, err
	}
	return s.control.namespace(ctx, id.String())
}

// DeleteNamespace removes a namespace with everything in it, and destroys its data key.
func (s *service) DeleteNamespace(ctx context.Context, id kv.NamespaceID) error {
	return s.changeControl(ctx, command.Op{Kind: command.KindDeleteNamespace, Namespace: id})
}

// changeControl commits a change of the control state and waits until this node has it, so that whoever made the change
// finds it here. A node whose feed is cut asks for it instead.
func (s *service) changeControl(ctx context.Context, op command.Op) error {
	res, r, err := s.commit(ctx, op)
	if err != nil {
		return err
	}
	if err := s.control.await(ctx, res.Epoch, r.Revision); err != nil {
		// It is committed: the client is told so, the feed will bring it here.
		s.control.log.Warn("a change of the control state has not come back to this node yet", "error", err)
	}
	return nil
}

// await waits until this node has a control state, or a later one, and asks the mesh for it when it does not come by itself.
func (s *controlState) await(ctx context.Context, epoch kv.Epoch, rev kv.Revision) error {
	ctx, cancel := context.WithTimeout(ctx, applyWait*20)
	defer cancel()
	for {
		c, changed := s.current()
		if c.Epoch.Compare(epoch) > 0 || (c.Epoch == epoch && c.Revision >= rev) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			latest, err := s.ask(context.WithoutCancel(ctx), kv.Control{Epoch: epoch, Revision: rev})
			if err == nil {
				err = s.take(latest)
			}
			if err != nil {
				return errors.Join(ctx.Err(), err)
			}
			return nil
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cloudflare/cloudflare-go/v6/kv"
)

// numbered are the names of the keys of the bulk calls.
func numbered() []string {
	var names []string
	for i := range 2500 {
		names = append(names, fmt.Sprintf("k%04d", i))
	}
	return names
}

func bulkPut(ctx context.Context, c *client) error {
	var p kv.NamespaceBulkUpdateParams
	given(&p.AccountID, account)
	var body []kv.NamespaceBulkUpdateParamsBody
	for i, name := range numbered() {
		var item kv.NamespaceBulkUpdateParamsBody
		given(&item.Key, name)
		given(&item.Value, "v"+name)
		given(&item.Metadata, map[string]any{"i": i})
		body = append(body, item)
	}
	p.Body = body
	done, err := c.kv.BulkUpdate(ctx, c.id, p)
	if err != nil {
		return err
	}
	return errors.Join(same("the count", done.SuccessfulKeyCount, 2500.0), same("unsuccessful_keys", len(done.UnsuccessfulKeys), 0))
}

func keyPages(ctx context.Context, c *client) error {
	keys, err := c.list(ctx, "k0", 300)
	if err != nil {
		return err
	}
	var got []string
	for _, key := range keys {
		got = append(got, key.Name)
	}
	return errors.Join(same("the listing", got, numbered()[:1000]), same("the metadata", keys[len(keys)-1].Metadata, any(map[string]any{"i": 999.0})))
}

func bulkGet(ctx context.Context, c *client) error {
	var p kv.NamespaceBulkGetParams
	given(&p.AccountID, account)
	given(&p.Keys, []string{"k0001", "none"})
	plain, err := c.kv.BulkGet(ctx, c.id, p)
	if err != nil {
		return err
	}
	given(&p.WithMetadata, true)
	full, err := c.kv.BulkGet(ctx, c.id, p)
	if err != nil {
		return err
	}
	return errors.Join(
		hasParts("the answer", plain.JSON.RawJSON(), `"k0001":"vk0001"`, `"none":null`),
		hasParts("the answer with metadata", full.JSON.RawJSON(), `"value":"vk0001"`, `"metadata":{"i":1}`, `"none":null`),
	)
}

// hasParts is an error unless text, blanks left out, has all parts.
func hasParts(what, text string, parts ...string) error {
	text = strings.Join(strings.Fields(text), "")
	for _, part := range parts {
		if !strings.Contains(text, part) {
			return fmt.Errorf("no %s in %s %.500s", part, what, text)
		}
	}
	return nil
}

func bulkDelete(ctx context.Context, c *client) error {
	var p kv.NamespaceBulkDeleteParams
	given(&p.AccountID, account)
	p.Body = numbered()
	done, err := c.kv.BulkDelete(ctx, c.id, p)
	if err != nil {
		return err
	}
	keys, err := c.list(ctx, "k0", 1000)
	return errors.Join(err, same("the count", done.SuccessfulKeyCount, 2500.0), same("the keys that are left", len(keys), 0))
}

// bulkCallsOfKeys are the older forms of the three bulk calls.
func bulkCallsOfKeys(ctx context.Context, c *client) error {
	var item kv.NamespaceKeyBulkUpdateParamsBody
	given(&item.Key, "old")
	given(&item.Value, "AP8=")
	given(&item.Base64, true)
	var put kv.NamespaceKeyBulkUpdateParams
	given(&put.AccountID, account)
	put.Body = []kv.NamespaceKeyBulkUpdateParamsBody{item}
	//lint:ignore SA1019 the older form is what is tried
	if _, err := c.kv.Keys.BulkUpdate(ctx, c.id, put); err != nil {
		return err
	}
	got, err := c.get(ctx, "old")
	if err = errors.Join(err, same("the value", got, "\x00\xff"), c.put(ctx, "old", "text", nil)); err != nil {
		return err
	}
	var get kv.NamespaceKeyBulkGetParams
	given(&get.AccountID, account)
	given(&get.Keys, []string{"old"})
	//lint:ignore SA1019 the older form is what is tried
	values, err := c.kv.Keys.BulkGet(ctx, c.id, get)
	if err != nil {
		return err
	}
	var del kv.NamespaceKeyBulkDeleteParams
	given(&del.AccountID, account)
	del.Body = []string{"old"}
	//lint:ignore SA1019 the older form is what is tried
	if _, err := c.kv.Keys.BulkDelete(ctx, c.id, del); err != nil {
		return err
	}
	_, err = c.get(ctx, "old")
	return errors.Join(hasParts("the answer", values.JSON.RawJSON(), `"old":"text"`), refused(err, 404, 10009))
}

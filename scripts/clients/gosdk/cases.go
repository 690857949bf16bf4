package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/cloudflare/cloudflare-go/v6/kv"
	"github.com/cloudflare/cloudflare-go/v6/shared"
)

// client is the SDK's service and the namespace that the cases share; the first case makes it, the last one deletes it.
type client struct {
	kv    *kv.NamespaceService
	title string
	id    string
}

// testCase is one case. Its name is listed in scripts/clients/cases.txt.
type testCase struct {
	name string
	run  func(context.Context, *client) error
}

// cases lists all cases in the order in which they have to run.
func cases() []testCase {
	all := []testCase{
		{"namespace create", namespaceCreate},
		{"namespace get", namespaceGet},
		{"namespace rename", namespaceRename},
		{"namespace pages", namespacePages},
		{"namespace twice", namespaceTwice},
	}
	// The SDK does not escape what it puts into a path.
	for _, key := range []string{"plain", "a/b", "ü x", "a+b", strings.Repeat("k", 512)} {
		all = append(all, testCase{"value " + key[:min(len(key), 10)], func(ctx context.Context, c *client) error {
			return valueRoundTrip(ctx, c, key)
		}})
	}
	return append(all, []testCase{
		{"value of bytes", valueOfBytes},
		{"value replaced", valueReplaced},
		{"metadata as an object", metadataObject},
		{"metadata as text", metadataText},
		{"expiration_ttl", expirationTTL},
		{"bulk put", bulkPut},
		{"key pages", keyPages},
		{"bulk get", bulkGet},
		{"bulk delete", bulkDelete},
		{"bulk calls of keys", bulkCallsOfKeys},
		{"delete", deleteKey},
		{"namespace delete", namespaceDelete},
	}...)
}

// given marks a field of the SDK's parameters as given, as the F of the SDK's root package does. The type of these fields is
// internal to the SDK and cannot be named here.
func given(field, value any) {
	f := reflect.ValueOf(field).Elem()
	f.FieldByName("Value").Set(reflect.ValueOf(value))
	f.FieldByName("Present").SetBool(true)
}

// same is an error unless got is want.
func same(what string, got, want any) error {
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%s is %.500v, want %.500v", what, got, want)
	}
	return nil
}

// refused is an error unless err has this HTTP status and Cloudflare's error code.
func refused(err error, status, code int) error {
	if err == nil {
		return fmt.Errorf("no error, want %d with code %d", status, code)
	}
	text := err.Error()
	for _, part := range []string{fmt.Sprintf(": %d ", status), fmt.Sprintf(`"code":%d,`, code)} {
		if !strings.Contains(strings.ReplaceAll(text, `"code": `, `"code":`), part) {
			return fmt.Errorf("no %q in %w", part, err)
		}
	}
	return nil
}

func (c *client) put(ctx context.Context, key, value string, metadata any) error {
	var p kv.NamespaceValueUpdateParams
	given(&p.AccountID, account)
	given(&p.Value, shared.UnionString(value))
	if metadata != nil {
		given(&p.Metadata, metadata)
	}
	_, err := c.kv.Values.Update(ctx, c.id, key, p)
	return err
}

func (c *client) get(ctx context.Context, key string) (string, error) {
	var p kv.NamespaceValueGetParams
	given(&p.AccountID, account)
	resp, err := c.kv.Values.Get(ctx, c.id, key, p)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func (c *client) metadata(ctx context.Context, key string) (any, error) {
	var p kv.NamespaceMetadataGetParams
	given(&p.AccountID, account)
	res, err := c.kv.Metadata.Get(ctx, c.id, key, p)
	if err != nil || res == nil {
		return nil, err
	}
	return *res, nil
}

// list returns all keys with a prefix, in pages of limit.
func (c *client) list(ctx context.Context, prefix string, limit float64) ([]kv.Key, error) {
	var p kv.NamespaceKeyListParams
	given(&p.AccountID, account)
	given(&p.Prefix, prefix)
	given(&p.Limit, limit)
	var keys []kv.Key
	it := c.kv.Keys.ListAutoPaging(ctx, c.id, p)
	for it.Next() {
		keys = append(keys, it.Current())
	}
	return keys, it.Err()
}

// namespaces returns the ids of all namespaces, sorted, in pages of perPage.
func (c *client) namespaces(ctx context.Context, perPage float64) ([]string, error) {
	var p kv.NamespaceListParams
	given(&p.AccountID, account)
	given(&p.PerPage, perPage)
	var ids []string
	it := c.kv.ListAutoPaging(ctx, p)
	for it.Next() {
		ids = append(ids, it.Current().ID)
	}
	slices.Sort(ids)
	return ids, it.Err()
}

func namespaceCreate(ctx context.Context, c *client) error {
	var p kv.NamespaceNewParams
	given(&p.AccountID, account)
	given(&p.Title, c.title)
	ns, err := c.kv.New(ctx, p)
	if err != nil {
		return err
	}
	c.id = ns.ID
	return errors.Join(same("the title", ns.Title, c.title), same("supports_url_encoding", ns.SupportsURLEncoding, true))
}

func namespaceGet(ctx context.Context, c *client) error {
	var p kv.NamespaceGetParams
	given(&p.AccountID, account)
	ns, err := c.kv.Get(ctx, c.id, p)
	if err != nil {
		return err
	}
	return same("the title", ns.Title, c.title)
}

func namespaceRename(ctx context.Context, c *client) error {
	var p kv.NamespaceUpdateParams
	given(&p.AccountID, account)
	given(&p.Title, c.title+"b")
	ns, err := c.kv.Update(ctx, c.id, p)
	if err != nil {
		return err
	}
	return same("the title", ns.Title, c.title+"b")
}

// namespacePages walks all namespaces one by one. Others make and delete namespaces meanwhile, and pages shift: a walk counts
// if the set was the same before and after.
func namespacePages(ctx context.Context, c *client) error {
	var walks [3][]string
	for range 50 {
		for i, perPage := range []float64{1000, 1, 1000} {
			var err error
			if walks[i], err = c.namespaces(ctx, perPage); err != nil {
				return err
			}
		}
		if slices.Equal(walks[0], walks[2]) && slices.Equal(walks[0], walks[1]) {
			break
		}
	}
	return errors.Join(same("the walk one by one", walks[1], walks[2]), same("that the namespace is listed", slices.Contains(walks[1], c.id), true))
}

func namespaceTwice(ctx context.Context, c *client) error {
	var p kv.NamespaceNewParams
	given(&p.AccountID, account)
	given(&p.Title, c.title+"b")
	_, err := c.kv.New(ctx, p)
	return refused(err, 400, 10014)
}

func valueRoundTrip(ctx context.Context, c *client, key string) error {
	if err := c.put(ctx, key, "value of "+key, nil); err != nil {
		return err
	}
	got, err := c.get(ctx, key)
	return errors.Join(err, same("the value", got, "value of "+key))
}

func valueOfBytes(ctx context.Context, c *client) error {
	value := string([]byte{0, 255, 13, 10, 0, 128})
	if err := c.put(ctx, "bytes", value, nil); err != nil {
		return err
	}
	got, err := c.get(ctx, "bytes")
	return errors.Join(err, same("the value", got, value))
}

func valueReplaced(ctx context.Context, c *client) error {
	if err := errors.Join(c.put(ctx, "r", "1", map[string]any{"a": "b"}), c.put(ctx, "r", "2", nil)); err != nil {
		return err
	}
	got, err := c.get(ctx, "r")
	metadata, merr := c.metadata(ctx, "r")
	return errors.Join(err, merr, same("the value", got, "2"), same("the metadata", metadata, nil))
}

func metadataObject(ctx context.Context, c *client) error {
	// A form has no types, so these are texts.
	want := map[string]any{"a": map[string]any{"b": "c"}, "list": []any{"x", "y"}}
	if err := c.put(ctx, "m", "v", want); err != nil {
		return err
	}
	got, err := c.metadata(ctx, "m")
	return errors.Join(err, same("the metadata", got, want))
}

func metadataText(ctx context.Context, c *client) error {
	if err := c.put(ctx, "s", "v", `{"n": 1, "deep": [{}]}`); err != nil {
		return err
	}
	got, err := c.metadata(ctx, "s")
	return errors.Join(err, same("the metadata", got, map[string]any{"n": 1.0, "deep": []any{map[string]any{}}}))
}

func expirationTTL(ctx context.Context, c *client) error {
	put := func(seconds float64) error {
		var p kv.NamespaceValueUpdateParams
		given(&p.AccountID, account)
		given(&p.Value, shared.UnionString("v"))
		given(&p.ExpirationTTL, seconds)
		_, err := c.kv.Values.Update(ctx, c.id, "ttl", p)
		return err
	}
	if err := put(1000); err != nil {
		return err
	}
	keys, err := c.list(ctx, "ttl", 10)
	if err != nil || len(keys) != 1 {
		return errors.Join(err, same("the number of keys", len(keys), 1))
	}
	if left := keys[0].Expiration - float64(time.Now().Unix()); left < 900 || left > 1001 {
		return fmt.Errorf("it expires in %v s, want 1000", left)
	}
	return refused(put(59), 400, 10034)
}

func deleteKey(ctx context.Context, c *client) error {
	var p kv.NamespaceValueDeleteParams
	given(&p.AccountID, account)
	if _, err := c.kv.Values.Delete(ctx, c.id, "m", p); err != nil {
		return err
	}
	_, err := c.get(ctx, "m")
	_, merr := c.metadata(ctx, "m")
	return errors.Join(refused(err, 404, 10009), refused(merr, 404, 10009))
}

func namespaceDelete(ctx context.Context, c *client) error {
	var p kv.NamespaceDeleteParams
	given(&p.AccountID, account)
	if _, err := c.kv.Delete(ctx, c.id, p); err != nil {
		return err
	}
	var get kv.NamespaceGetParams
	given(&get.AccountID, account)
	_, err := c.kv.Get(ctx, c.id, get)
	return refused(err, 404, 10013)
}

-- One row is one click; (node, boot, sequence) is unique. A partition holds a
-- day (UTC) of clicks, by the time of the redirect, and is named
-- aff_clicks_YYYYMMDD. Drop a partition to forget a day.
CREATE TABLE IF NOT EXISTS aff_clicks (
  time        timestamptz NOT NULL,
  node        text NOT NULL,
  boot        text NOT NULL,     -- 16 hex digits
  sequence    bigint NOT NULL,   -- from 1 with each boot
  region      text NOT NULL,
  epoch       text NOT NULL,     -- with revision: the version of the links that decided
  revision    bigint NOT NULL,
  link        text NOT NULL,     -- domain and path; empty when no link decided
  affiliate   text NOT NULL,
  campaign    text NOT NULL,
  variant     text NOT NULL,
  rule        bigint NOT NULL,   -- 1 for the first; 0: none
  destination text NOT NULL,
  status      integer NOT NULL,
  method      text NOT NULL,
  outcome     text NOT NULL,
  address     text NOT NULL,     -- 203.0.113.9, 203.0.113.0/24, or a hash in hex
  user_agent  text NOT NULL,
  referrer    text NOT NULL,
  languages   text NOT NULL,
  host        text NOT NULL,
  path        text NOT NULL,
  parameters  jsonb,             -- [{"name": ..., "value": ...}]
  labels      jsonb,             -- [{"name": ..., "reason": ...}]
  country     text NOT NULL,
  asn         bigint NOT NULL
) PARTITION BY RANGE (time);

CREATE INDEX IF NOT EXISTS aff_clicks_time ON aff_clicks USING brin (time);
CREATE INDEX IF NOT EXISTS aff_clicks_affiliate ON aff_clicks (affiliate, time);

-- Where each sink is in the stream, and which clicks it has.
CREATE TABLE IF NOT EXISTS aff_sinks (
  name  text PRIMARY KEY,
  owner text NOT NULL,
  state jsonb
);

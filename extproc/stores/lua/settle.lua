-- {worker, call, counters, amounts by unit, own, whole}, row → places of missing counters. Each call counts once for as
-- long as its row is kept; one without a reservation counts if `whole`.

local open, rows = open_of(step.worker), rows_of(step.worker)
if redis.call("HEXISTS", rows, step.call) == 1 then return cmsgpack.pack({}) end

local record = redis.call("HGET", open, step.call)
if not record and not step.whole then return cmsgpack.pack({}) end

local places = missing()
if #places > 0 then return cmsgpack.pack(places) end

local holds = record and cmsgpack.unpack(record).holds or {}
for key, hold in pairs(holds) do finish(key, hold, step.amounts[hold.unit]) end
for _, counter in ipairs(step.counters) do
  if not holds[counter.key] then count(counter, step.amounts[counter.unit]) end
end
redis.call("HDEL", open, step.call)
redis.call("HSET", rows, step.call, ARGV[2])

if step.own then
  renew(step.worker)
else
  redis.call("ZADD", WORKERS, "NX", 0, step.worker) -- its row is to be found
end
return cmsgpack.pack({})

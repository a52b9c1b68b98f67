-- {most} → [[call, worker, note, row]], as plain strings. Workers that left nothing are forgotten.

local orphans = {}
for _, worker in ipairs(redis.call("ZRANGEBYSCORE", WORKERS, "-inf", now)) do
  if redis.call("EXISTS", open_of(worker), rows_of(worker)) == 0 then redis.call("ZREM", WORKERS, worker) end
  -- At random: those that cannot be dealt with must not hide the others.
  for _, kept in ipairs({ open_of(worker), rows_of(worker) }) do
    local room = step.most - #orphans
    local fields = room > 0 and redis.call("HRANDFIELD", kept, room, "WITHVALUES") or {}
    for i = 1, #fields, 2 do
      local note, row = "", fields[i + 1]
      if kept == open_of(worker) then note, row = cmsgpack.unpack(row).note, "" end
      table.insert(orphans, { fields[i], worker, note, row })
    end
  end
end
return orphans

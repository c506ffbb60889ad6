import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Optional;
import java.util.Set;
import java.util.zip.CRC32;
import com.fasterxml.jackson.databind.ObjectMapper;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.StreamPartitioner;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;

/**
 * The reference job: the tenant's placement and sequence from stores with changelogs; the same bytes, the sequence in
 * front, to the partition of the placement, with the session as key. PEER_PARSE=json reads the session by Jackson,
 * PEER_PARSE=slice takes it from where it stands.
 */
public final class Reference {
    private static final int SESSION_AT = 29;
    private static final int SESSION_END = 61;

    /** A partitioner sees key and value only, so the value carries the placement. */
    record Out(byte[] value, int place) {}

    static final class Route implements Processor<String, byte[], byte[], Out> {
        private final ObjectMapper json = new ObjectMapper();
        private final boolean slice = Settings.of("PARSE").equals("slice");
        private ProcessorContext<byte[], Out> context;
        private KeyValueStore<String, Integer> places;
        private KeyValueStore<String, Long> sequences;

        @Override
        public void init(ProcessorContext<byte[], Out> given) {
            context = given;
            places = given.getStateStore("places");
            sequences = given.getStateStore("sequences");
        }

        @Override
        public void process(Record<String, byte[]> record) {
            String tenant = record.key();
            byte[] value = record.value();
            Integer place = places.get(tenant);
            if (place == null) {
                CRC32 hash = new CRC32();
                hash.update(tenant.getBytes(StandardCharsets.UTF_8));
                place = (int) (hash.getValue() % Settings.PLACES);
                places.put(tenant, place);
            }
            Long last = sequences.get(tenant);
            long sequence = last == null ? 1 : last + 1;
            sequences.put(tenant, sequence);
            byte[] prefix = (sequence + "|").getBytes(StandardCharsets.US_ASCII);
            byte[] out = ByteBuffer.allocate(prefix.length + value.length).put(prefix).put(value).array();
            context.forward(new Record<>(session(value), new Out(out, place), record.timestamp()));
        }

        private byte[] session(byte[] value) {
            if (slice) {
                return Arrays.copyOfRange(value, SESSION_AT, SESSION_END);
            }
            try {
                return json.readTree(value).get("session").textValue().getBytes(StandardCharsets.UTF_8);
            } catch (java.io.IOException error) {
                throw new IllegalStateException(error);
            }
        }
    }

    public static void main(String[] arguments) throws InterruptedException {
        Topology topology = new Topology();
        topology.addSource("in", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), Settings.of("IN"));
        topology.addProcessor("route", Route::new, "in");
        topology.addStateStore(Settings.store("places", Serdes.String(), Serdes.Integer()), "route");
        topology.addStateStore(Settings.store("sequences", Serdes.String(), Serdes.Long()), "route");
        Serializer<Out> values = (topic, out) -> out.value();
        StreamPartitioner<byte[], Out> partitioner = (topic, key, out, count) -> Optional.of(Set.of(out.place()));
        topology.addSink("out", Settings.of("OUT"), Serdes.ByteArray().serializer(), values, partitioner, "route");
        Settings.run(topology);
    }
}

import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import java.util.stream.Collectors;
import java.util.stream.IntStream;
import org.apache.kafka.clients.producer.internals.BuiltInPartitioner;
import org.apache.kafka.common.utils.Utils;

/**
 * Writes partitions.json from what Kafka's own Java client answers:
 *
 * <pre>java -cp kafka-clients-4.3.1.jar:slf4j-api-1.7.36.jar Partitions.java > partitions.json</pre>
 */
class Partitions {
    private static final int[] COUNTS = {1, 3, 6, 12, 64, 1000};

    public static void main(String[] args) {
        List<byte[]> keys = new ArrayList<>();
        for (String text : new String[] {"", "a", "ab", "abc", "abcd", "abcde", "21", "foobar", "a-little-bit-long-string",
                "github.com/example/coderelay", "github.com/torvalds/linux", "gitlab.com/größe/straße", "日本/コード", "🦀"}) {
            keys.add(text.getBytes(StandardCharsets.UTF_8));
        }
        // Bytes over 0x7f show a signed char, and every remainder of four shows the tail.
        for (int length = 1; length <= 9; length++) {
            byte[] bytes = new byte[length];
            for (int i = 0; i < length; i++) {
                bytes[i] = (byte) (0xff - 17 * i);
            }
            keys.add(bytes);
        }
        IntStream.range(0, 40).forEach(i -> keys.add(("github.com/example/repo-" + i).getBytes(StandardCharsets.UTF_8)));

        System.out.println("{");
        System.out.println("  \"about\": \"Partitions of keys. Written by Partitions.java with kafka-clients 4.3.1: murmur2 is"
                + " org.apache.kafka.common.utils.Utils.murmur2 (a signed 32-bit integer), partitions are"
                + " BuiltInPartitioner.partitionForKey for each number of partitions.\",");
        System.out.println("  \"vectors\": [");
        System.out.println(keys.stream().map(Partitions::vector).collect(Collectors.joining(",\n")));
        System.out.println("  ]");
        System.out.println("}");
    }

    private static String vector(byte[] key) {
        String partitions = IntStream.of(COUNTS)
                .mapToObj(count -> "\"" + count + "\": " + BuiltInPartitioner.partitionForKey(key, count))
                .collect(Collectors.joining(", "));
        return "    {\"key_hex\": \"" + HexFormat.of().formatHex(key) + "\", \"murmur2\": " + Utils.murmur2(key)
                + ", \"partitions\": {" + partitions + "}}";
    }
}
